"""A signal that comes where no step is made: it is heeded, what is done is saved, and the same call goes on."""

from __future__ import annotations

import errno
import os
import signal
import socket
from pathlib import Path

import pytest

from fastfgssl.config.files import write_config
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.patience import persistently
from fastfgssl.runtime.signals import StopRequest
from fastfgssl.training import checkpoint
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.hooks import Hook
from helpers.command import Command
from helpers.faulty_runs import flat
from helpers.paths import TOOLS

TINY = {
    "objective": "helpers.tiny_objective",
    "data__image_size": 16,
    "evaluate__every": 0,
    "train__batch_size": 4,
    "train__checkpoint_every": 2,
}


def signal_to_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Before(Hook):
    """Signals before the first batch is made."""

    def begin(self, run) -> None:
        signal_to_this_process()

    def __call__(self, moment) -> None:
        pass


class Scoring(Hook):
    """Signals while it does what takes longer than a step."""

    def __call__(self, moment) -> None:
        if moment.step == 2:
            signal_to_this_process()


@pytest.fixture(scope="module")
def whole() -> dict:
    """The end of an undisturbed run, once it is known."""
    return {}


def newest(config) -> dict:
    return load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])


@pytest.mark.parametrize(
    ("when", "steps"), [("before the first step", 0), ("while a checkpoint is written", 3), ("while hooks score", 3)]
)
def test_a_signal_between_steps_saves_and_the_same_call_goes_on(make_config, tmp_path, monkeypatch, whole, when, steps):
    if not whole:
        config = make_config(**TINY, output=str(tmp_path / "whole"))
        pretrain(config)
        whole |= flat(newest(config))
    hooks = {"before the first step": [Before()], "while hooks score": [Scoring()]}.get(when, [])
    write = checkpoint._write

    def write_and_signal(file, state) -> None:
        if state["step"] == 2:
            signal_to_this_process()
        write(file, state)

    config = make_config(**TINY)
    with monkeypatch.context() as patch, StopRequest() as request:
        if when == "while a checkpoint is written":
            patch.setattr(checkpoint, "_write", write_and_signal)
        outcome = pretrain(config, hooks=hooks, stop_signal=lambda: request.signal_number)
    assert (outcome.stopped_by, outcome.steps_done) == (signal.SIGTERM, steps)
    assert newest(config)["step"] == steps
    pretrain(config)
    assert flat(newest(config)) == whole


def test_a_rank_that_waits_for_others_ends_at_once(make_config, tmp_path):
    write_config(make_config(), tmp_path / "config.yaml")
    with socket.create_server(("127.0.0.1", 0)) as server:  # to which it turns as if it were rank 0
        names = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        variables = {name: str(value) for name, value in (names | {"MASTER_PORT": server.getsockname()[1]}).items()}
        rank = Command(
            TOOLS / "train.py", "--config", tmp_path / "config.yaml", environment=dict(os.environ) | variables
        )
        server.settimeout(120)
        server.accept()
        rank.send_signal(signal.SIGUSR1)
        _, errors = rank.communicate(timeout=60)
    assert rank.returncode == 128 + signal.SIGUSR1
    assert errors.splitlines()[-1] == "ended by SIGUSR1 while it waited for other ranks"


def test_a_terminal_that_is_closed_is_a_stop_unless_it_is_ignored(monkeypatch):
    for handler, expected in ((signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, None)):
        previous = signal.signal(signal.SIGHUP, handler)
        try:
            with StopRequest() as request:
                os.kill(os.getpid(), signal.SIGHUP)
                assert request.signal_number == expected
            assert signal.getsignal(signal.SIGHUP) == handler
        finally:
            signal.signal(signal.SIGHUP, previous)


def test_a_pause_for_a_disk_ends_when_a_signal_comes():
    tried = []

    def full() -> None:
        tried.append(1)
        if len(tried) == 2:
            signal_to_this_process()
        raise OSError(errno.ENOSPC, "No space left on device")

    with StopRequest(), pytest.raises(OSError, match="No space left"):
        persistently(full, "save step 1", 600.0)
    assert len(tried) == 2
    with pytest.raises(OSError, match="No space left"):  # no later one is ended by it
        persistently(full, "save step 1", 0.5)
    assert len(tried) > 3
