"""Where a run's best weights are kept, and which of its errors a later start may not meet again."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
import torch

from fastfgssl.config.files import config_from_values
from fastfgssl.config.schema import Config
from fastfgssl.evaluation.pretrained import load_pretrained
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.agreement import on_this_rank, shared_errors
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import RankError, UserError, file_errors
from fastfgssl.training import checkpoint, saving
from fastfgssl.training.checkpoint import checkpoint_path, list_checkpoints, save_checkpoint
from fastfgssl.training.replay import state_before
from fastfgssl.training.saving import checkpoints_of, fallback_of, find_best, goes_on, keep_as, save_best


@pytest.fixture
def config(tmp_path) -> Config:
    places = {"output": str(tmp_path / "run"), "output_fallback": str(tmp_path / "elsewhere")}
    return config_from_values(places | {"data.path": str(tmp_path / "archive"), "train.steps": 3})


def state(step: int) -> dict:
    parts = {"objective": {}, "optimizer": {}, "scaler": {}, "config": {}, "archive": "of the test"}
    return {"step": step, "score": step / 10, "model": {"weight": torch.full((4,), float(step))}} | parts


class Disk:
    """The output folder's, which takes no best.pt while it is full."""

    def __init__(self, monkeypatch, folder) -> None:
        self.is_full, self._folder, self._write = False, folder, saving.write_checkpoint
        monkeypatch.setattr(saving, "write_checkpoint", self._take)

    def _take(self, path, stored) -> None:
        if self.is_full and path.parent == self._folder:
            raise UserError(f"cannot write {path}: No space left on device", errno=errno.ENOSPC)
        self._write(path, stored)


def test_the_best_weights_go_where_there_is_room_and_come_back(config, monkeypatch, caplog):
    disk, output, fallback = Disk(monkeypatch, checkpoints_of(config)), checkpoints_of(config), fallback_of(config)
    assert save_best(config, state(1), seconds=0) == output / "best.pt"
    disk.is_full = True
    assert save_best(config, state(2), seconds=0) == fallback / "best.pt"
    assert f"saved as {fallback / 'best.pt'}" in caplog.text
    path, best = find_best(config)
    assert (path, best["step"], best["score"]) == (fallback / "best.pt", 2, 0.2)
    disk.is_full = False
    assert save_best(config, best, seconds=0) == output / "best.pt"
    assert find_best(config)[1]["step"] == 2
    assert not fallback.exists()


def test_a_best_checkpoint_that_nothing_takes_is_one_line_and_leaves_the_one_before(config, monkeypatch):
    config = replace(config, output_fallback="")
    disk = Disk(monkeypatch, checkpoints_of(config))
    save_best(config, state(1), seconds=0)
    disk.is_full = True
    with pytest.raises(UserError, match="No space left on device") as caught:
        save_best(config, state(2), seconds=0)
    assert caught.value.errno == errno.ENOSPC
    assert find_best(config)[1]["step"] == 1


def test_the_best_one_before_stands_in_for_a_damaged_one(config, caplog):
    for step in (1, 2, 3):
        save_best(config, state(step), seconds=0)
    best = checkpoints_of(config) / "best.pt"
    best.write_bytes(best.read_bytes()[:-100])
    path, found = find_best(config)
    assert (path.name, found["step"]) == ("best_before.pt", 2)
    assert "the best one before it stands in for it" in caplog.text
    assert {file.name for file in best.parent.iterdir()} == {"best.damaged", "best_before.pt"}
    path.write_bytes(b"")
    assert find_best(config) is None


def refused(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_a_file_keeps_a_second_name_without_links_too(tmp_path, monkeypatch):
    (tmp_path / "first").write_bytes(b"bytes")
    (tmp_path / "second").write_bytes(b"of an earlier one")
    for has_links in (True, False):
        if not has_links:
            monkeypatch.setattr(os, "link", refused)
        keep_as(tmp_path / "first", tmp_path / "second")
        assert (tmp_path / "second").read_bytes() == b"bytes"
        assert {file.name for file in tmp_path.iterdir()} == {"first", "second"}
        (tmp_path / "first").write_bytes(b"bytes")


def refusal(number: int) -> UserError:
    """What a rank raises that the system has refused something, as all ranks come to know it."""
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"), group=None, control=None)
    with pytest.raises(RankError) as alone, on_this_rank("reading"), file_errors("read", "shard"):
        raise OSError(number, "refused")
    with pytest.raises(UserError) as together, shared_errors(world), file_errors("read", "shard"):
        raise OSError(number, "refused")
    assert alone.value.errno == together.value.errno == number
    return together.value


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_run_that_storage_has_ended_goes_on(config, number):
    assert goes_on(config, refusal(number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_ends_a_run_for_now_and_is_a_mistake_before_it(config, number):
    assert not goes_on(config, refusal(number))
    save_checkpoint(fallback_of(config), state(0), keep=1)
    assert goes_on(config, refusal(number))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, None])
def test_what_its_user_has_to_mend_does_not(config, number):
    save_checkpoint(checkpoints_of(config), state(0), keep=1)
    assert not goes_on(config, UserError("cannot read", errno=number))


def test_a_complete_run_comes_back_from_the_fallback_and_is_found_there_until_then(make_config, tmp_path, monkeypatch):
    config = make_config(output_fallback=str(tmp_path / "elsewhere"), train__steps=2)
    output, write, full = checkpoints_of(config), checkpoint.write_checkpoint, [True]

    def take(path, stored) -> None:
        if full[0] and path.parent == output and stored["step"]:
            raise UserError(f"cannot write {path}: No space left on device", errno=errno.ENOSPC)
        write(path, stored)

    monkeypatch.setattr(checkpoint, "write_checkpoint", take)
    pretrain(config)
    assert [path.name for path in list_checkpoints(output)] == ["step_000000000.pt"]
    assert load_pretrained(config.output).step == 2  # what is scored and taken home
    pretrain(config)  # still full
    assert load_pretrained(config.output).step == 2
    full[0] = False
    assert pretrain(config).checkpoint == list_checkpoints(output)[-1] == checkpoint_path(output, 2)
    assert not list_checkpoints(fallback_of(config))


def test_a_step_is_made_again_from_the_newest_whole_checkpoint_before_it(config, caplog):
    places = checkpoints_of(config), fallback_of(config)
    for folder, step in ((places[0], 1), (places[1], 2), (places[0], 3)):
        save_checkpoint(folder, state(step), keep=9)
    damaged = checkpoint_path(places[0], 3)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert [state_before(step, *places)["step"] for step in (9, 3, 2)] == [2, 2, 1]
    assert "step_000000003.pt" in caplog.text
    with pytest.raises(UserError, match=r"no whole checkpoint in .* is from before step 1"):
        state_before(1, *places)
