"""Checkpoints: whole or not at all, found again, and never a program."""

from __future__ import annotations

import pytest
import torch

from fastfgssl.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
)
from fastfgssl.errors import UserError


def save(folder, step, keep=3):
    return save_checkpoint(folder, {"step": step, "model": {"w": torch.full((3,), float(step))}}, keep=keep)


def test_the_first_and_the_newest_are_kept(tmp_path):
    for step in (0, 5, 10, 15, 20):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step_000000000.pt",
        "step_000000015.pt",
        "step_000000020.pt",
    ]
    state = load_newest_checkpoint(tmp_path)
    assert state["step"] == 20
    torch.testing.assert_close(state["model"]["w"], torch.full((3,), 20.0))
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    newest.write_bytes(newest.read_bytes()[:100])
    assert load_newest_checkpoint(tmp_path)["step"] == 1
    assert "step_000000002.pt: damaged" in caplog.text


def test_an_interrupted_write_leaves_the_older_ones(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*: No space left on device"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


def test_no_checkpoint_is_none(tmp_path):
    assert load_newest_checkpoint(tmp_path / "nowhere") is None


class Malicious:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/fastfgssl_was_here",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "not a checkpoint of fastfgssl"),
        ([1], "not a checkpoint of fastfgssl"),
        ({"format_version": 99}, "made by a newer fastfgssl"),
        ({"format_version": 1, "x": Malicious()}, "damaged, or not a checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = checkpoint_path(tmp_path, 1)
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nothing.pt")
