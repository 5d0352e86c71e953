"""The folder that a run writes into: its own, and there."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path

import pytest

from fastfgssl.commands import train
from fastfgssl.config.files import write_config
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.lock import LOCK, held_folder
from fastfgssl.training.checkpoint import list_checkpoints, load_newest_checkpoint
from fastfgssl.training.hooks import Hook
from fastfgssl.training.sinks import read_metrics
from helpers.command import run_here

TINY = {"objective": "helpers.tiny_objective", "data__image_size": 16, "evaluate__every": 0, "train__batch_size": 4}


def test_a_second_run_on_one_folder_is_refused_and_changes_nothing(make_config, tmp_path, capsys):
    config = make_config(**TINY)
    write_config(config, tmp_path / "config.yaml")
    half = Path(config.output) / "checkpoints" / "step_000000001.pt.partial"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"being written")
    with held_folder(Path(config.output)):
        code = run_here(train.main, "--config", tmp_path / "config.yaml")
    errors = capsys.readouterr().err
    assert code == 2
    who = f"process {os.getpid()} on {socket.gethostname()}, since 2"
    assert f"{config.output} is being written by another job ({who}" in errors
    assert half.read_bytes() == b"being written"
    assert [path.name for path in Path(config.output).iterdir()] == ["checkpoints"]


def test_all_that_differs_from_the_run_in_the_folder_is_told(make_config):
    pretrain(make_config(**TINY, train__steps=1))
    other = make_config(**TINY, train__steps=1, seed=1, optim__lr=0.1, train__log_every=3)
    listed = "holds a run with seed = 0, this one has 1; optim.lr = 0.05, this one has 0.1: set it back, or choose"
    with pytest.raises(UserError, match=re.escape(listed)):
        pretrain(other)


class Remover(Hook):
    """Removes the output folder after step 2."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def __call__(self, moment) -> None:
        if moment.step == 2:
            shutil.rmtree(self._output)


def test_a_run_whose_folder_is_removed_makes_it_again(make_config, caplog):
    config = make_config(**TINY, train__checkpoint_every=2)
    output = Path(config.output)
    assert pretrain(config, hooks=[Remover(output)])[:2] == (4, None)
    assert load_newest_checkpoint(output / "checkpoints").state["step"] == 4
    assert [record["step"] for record in read_metrics(output)] == [2, 3, 4]
    assert f"{output / 'metrics.jsonl'} was removed: it begins anew with step 2" in caplog.messages
    assert len(list(output.glob("events.out.*"))) == 1
    assert not (output / LOCK).exists()
    assert len(list_checkpoints(output / "checkpoints")) == 2


def test_what_a_killed_process_had_half_written_goes_with_the_next_start_of_a_complete_run_too(make_config):
    config = make_config(**TINY, train__steps=1)
    pretrain(config)
    output = Path(config.output)
    halves = [output / "provenance.json.partial", output / "checkpoints" / "best.pt.partial"]
    for half in halves:
        half.write_bytes(b"half")
    pretrain(config)
    assert not list(output.rglob("*.partial"))
