"""Checkpoints: whole or not at all, found again, and never a program."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import (
    DamagedCheckpoint,
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
    tidy_checkpoints,
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("fastfgssl.runtime.patience.PAUSES", (0.0,))


def save(folder, step, keep=3):
    return save_checkpoint(folder, state_of(step), keep=keep)


def state_of(step: int) -> dict:
    weights = {"w": torch.full((3,), float(step))}
    return {"step": step, "model": weights, "objective": {}, "optimizer": {}, "scaler": {}} | {
        "config": {"seed": 0},
        "archive": "digest",
    }


def cut_short(path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_the_first_and_the_newest_are_kept(tmp_path):
    for step in (0, 5, 10, 15, 20):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step_000000000.pt",
        "step_000000015.pt",
        "step_000000020.pt",
    ]
    state = load_newest_checkpoint(tmp_path).state
    assert state["step"] == 20
    torch.testing.assert_close(state["model"]["w"], torch.full((3,), 20.0))
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_checkpoint_is_passed_over_and_costs_no_good_one(tmp_path, caplog):
    for step in (0, 1, 2):
        save(tmp_path, step)
    cut_short(checkpoint_path(tmp_path, 2))
    state, damaged = load_newest_checkpoint(tmp_path)
    assert state["step"] == 1
    assert damaged == [checkpoint_path(tmp_path, 2)]
    (message,) = caplog.messages
    assert message == f"{damaged[0]}: damaged, or not a checkpoint of fastfgssl; trying the one before"
    tidy_checkpoints(tmp_path, damaged)
    save(tmp_path, 1, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_000000000.pt",
        "step_000000001.pt",
        "step_000000002.damaged",
    ]


@pytest.mark.parametrize("length", [0, 1, 21, 5_000, 20_000, 50_000, 400_000, -1])
def test_a_checkpoint_cut_at_any_place_is_passed_over(tmp_path, length):
    save(tmp_path, 1)
    whole = save_checkpoint(tmp_path, state_of(2) | {"model": {"w": torch.randn(100, 1024)}}, keep=3)
    whole.write_bytes(whole.read_bytes()[:length])
    state, damaged = load_newest_checkpoint(tmp_path)
    assert (state["step"], damaged) == (1, [whole])


@pytest.mark.parametrize("flipped", [1, 400])
def test_a_checkpoint_whose_weights_have_changed_on_the_disk_is_passed_over(tmp_path, flipped):
    save(tmp_path, 1)
    whole = save_checkpoint(tmp_path, state_of(2) | {"model": {"w": torch.randn(100, 1024)}}, keep=3)
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2  # of the one large tensor
    content[middle : middle + flipped] = bytes(byte ^ 1 for byte in content[middle : middle + flipped])
    whole.write_bytes(content)
    state, damaged = load_newest_checkpoint(tmp_path)
    assert (state["step"], damaged) == (1, [whole])


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 16))])
def test_no_flipped_bit_is_taken_for_the_state_that_was_saved(tmp_path, first):
    """Wherever it is: in a tensor, in the pickle, in the zip file's own tables."""
    whole = save(tmp_path, 2)
    content, state = whole.read_bytes(), load_checkpoint(whole)
    passed = 0
    for place in range(first, len(content), 16):
        whole.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 7]) + content[place + 1 :])
        try:
            found = load_checkpoint(whole)
        except DamagedCheckpoint:
            passed += 1
        else:
            assert torch.equal(found.pop("model")["w"], state["model"]["w"])
            assert found == {name: value for name, value in state.items() if name != "model"}
    assert passed > 20


def test_the_file_just_written_is_never_the_one_removed(tmp_path):
    for step in (0, 5, 6, 3):
        save(tmp_path, step, keep=1)
    assert checkpoint_path(tmp_path, 3) in list_checkpoints(tmp_path)


def test_a_run_does_not_start_over_its_own_checkpoints(tmp_path):
    for step in (0, 1):
        cut_short(save(tmp_path, step))
    with pytest.raises(UserError, match=r"none of the 2 checkpoints in .* is whole: put back a copy of one, or move"):
        load_newest_checkpoint(tmp_path)


@pytest.mark.parametrize("hindrance", ["unreadable", "newer"])
def test_a_checkpoint_that_may_be_whole_is_not_passed_over(tmp_path, hindrance):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    if hindrance == "newer":
        torch.save({"format_version": 99}, newest)
    else:
        newest.unlink()
        newest.mkdir()  # the tests may run as root, who may read every file
    message = {"newer": "made by a newer fastfgssl", "unreadable": "cannot read the checkpoint .*: Is a directory"}
    with pytest.raises(UserError, match=message[hindrance]) as error:
        load_newest_checkpoint(tmp_path)
    assert not isinstance(error.value, DamagedCheckpoint)


def test_a_disk_that_fails_while_reading_does_not_make_a_checkpoint_damaged(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def failing_disk(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("torch.load", failing_disk)
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*: Input/output error"):
        load_newest_checkpoint(tmp_path)


def test_half_written_checkpoints_of_killed_runs_are_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step_000000002.pt.partial").write_bytes(b"half")
    tidy_checkpoints(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


def test_an_interrupted_write_leaves_the_older_ones(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*: No space left on device; earlier"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


def test_a_short_write_is_one_clear_error(tmp_path):
    """A limit on the size of a file stands in for the disk: torch then raises an error of its own."""
    program = """
import resource, sys, torch
from pathlib import Path
from fastfgssl.training.checkpoint import save_checkpoint
from fastfgssl.runtime.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    save_checkpoint(Path(sys.argv[1]), {"step": 2, "model": {"w": torch.zeros(100_000)}}, keep=1)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    path = checkpoint_path(tmp_path, 2)
    assert done.stdout == f"cannot write the checkpoint {path}: File too large; earlier checkpoints are untouched\n"
    assert list(tmp_path.iterdir()) == []


def test_a_write_error_is_told_though_the_half_file_cannot_be_removed(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    monkeypatch.setattr("pathlib.Path.unlink", fail)
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*: Input/output error"):
        save(tmp_path, 1)


def test_a_checkpoint_is_not_begun_where_the_disk_has_no_room_for_it(tmp_path, monkeypatch):
    save(tmp_path, 1)
    full = os.statvfs(tmp_path)
    room = SimpleNamespace(f_blocks=full.f_blocks, f_bavail=1, f_frsize=4096)
    monkeypatch.setattr("os.statvfs", lambda folder: room)
    monkeypatch.setattr("torch.save", lambda *_: pytest.fail("begun"))
    with pytest.raises(UserError, match=r"No space left on device: 4 MiB to write, 0 free; earlier checkpoints are"):
        save_checkpoint(tmp_path, state_of(2) | {"optimizer": {"state": {0: [torch.zeros(1 << 20)]}}}, keep=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


def test_old_checkpoints_that_cannot_be_removed_are_no_reason_to_end(tmp_path, monkeypatch, caplog):
    for step in (0, 1):
        save(tmp_path, step, keep=1)

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr("pathlib.Path.unlink", fail)
        save(tmp_path, 2, keep=1)
    assert caplog.messages == [f"cannot remove old checkpoints of {tmp_path}: Input/output error"]
    save(tmp_path, 3, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000000000.pt", "step_000000003.pt"]


def test_an_error_that_is_not_the_disks_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_checkpoint_reaches_the_disk_too(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    path = save(tmp_path, 1)
    assert synced == [str(path.with_name(f"{path.name}.partial")), str(tmp_path)]


def test_no_checkpoint_is_none(tmp_path):
    assert load_newest_checkpoint(tmp_path / "nowhere") == (None, [])


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
        ({"format_version": 1, "step": 1, "model": {}, "optimizer": {}, "scaler": {}}, "it lacks 'config'"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = checkpoint_path(tmp_path, 1)
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.pt: No such file"):
        load_checkpoint(tmp_path / "nothing.pt")
