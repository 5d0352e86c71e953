"""The alarm of a collapse: it comes when embeddings or views tell of one, once, and not in training that learns."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.pretraining import pretrain
from fastfgssl.training.checkpoint import load_checkpoint
from fastfgssl.training.collapse import CollapseAlarm
from fastfgssl.training.hooks import Hook

FEW = {"train__heads": [2], "train__checkpoint_every": 10}


class Report(Hook):
    """Puts numbers into what is reported from a step on, as a network would that collapses there."""

    def __init__(self, step: int, **logs: float) -> None:
        self._step, self._logs = step, logs

    def __call__(self, moment) -> None:
        if moment.step >= self._step and moment.logs:
            moment.logs.update(self._logs)


@pytest.mark.parametrize(
    ("logs", "said", "remedy"),
    [
        ({"effective_rank_2": 1.2}, "head 2: embeddings fill 1.2 directions", "lower optim.lr"),
        pytest.param({"effective_rank_2": 0.0}, "fill 0.0 directions", "lower optim.lr", marks=pytest.mark.slow),
        pytest.param({"dead_dimensions_2": 20.0}, "20 of 24 dimensions", "lower optim.lr", marks=pytest.mark.slow),
    ],
)
def test_a_collapse_is_told_once_with_its_picture_and_the_checkpoint_before(make_config, caplog, logs, said, remedy):
    config = make_config(train__steps=50, train__log_every=5, train__keep_checkpoints=1, **FEW)
    with caplog.at_level(logging.WARNING):
        pretrain(config, hooks=[Report(25, **logs)])
    (text,) = [message for message in caplog.messages if message.startswith("collapse at step")]
    assert text.startswith("collapse at step 45: ")
    assert said in text
    assert remedy in text
    assert (Path(config.output) / "collapse_step_45.png").exists()
    kept = load_checkpoint(Path(config.output) / "checkpoints" / "before_collapse.pt")
    assert kept["step"] <= 20


def test_one_odd_batch_is_none_and_so_is_training_that_learns(make_config, caplog):
    config = make_config(train__steps=50, train__log_every=5, **FEW)
    with caplog.at_level(logging.WARNING):
        pretrain(config)
    assert "collapse" not in caplog.text


def test_only_what_lasts_is_told(monkeypatch):
    alarm, told = CollapseAlarm(), []
    monkeypatch.setattr(CollapseAlarm, "_tell", lambda self, sign, since, moment: told.append(moment.step))
    make = type("Thing", (), {})
    run, world, update, config = make(), make(), make(), make()
    run.world, run.objective, run.config, run.num_samples, run.start = world, make(), config, 100, 0
    world.is_main, update.dim, run.objective.updates = True, 128, [update]
    config.optim, config.train = make(), make()
    config.optim.warmup_epochs, config.train.batch_size, config.train.log_every = 0.0, 10, 10
    alarm.begin(run)

    def at(step: int, **logs: float) -> bool:
        before = len(told)
        moment = make()
        moment.step, moment.logs = step, {"loss": 1.0} | logs
        alarm(moment)
        return len(told) > before

    assert not any(at(step, effective_rank_0=30.0, on_diagonal_0=128.0) for step in (10, 20))
    assert not at(30, effective_rank_0=1.0, on_diagonal_0=128.0)  # one batch
    assert not any(at(step, effective_rank_0=20.0, on_diagonal_0=127.0) for step in range(40, 110, 10))
    # a hundred steps, and views of an image are still no more alike than any
    assert [at(step, effective_rank_0=20.0, on_diagonal_0=127.0) for step in (110, 120)] == [False, True]


@pytest.mark.slow
def test_a_constant_archive_does_not_train_to_its_end_unnoticed(make_config, tmp_path, caplog):
    source = tmp_path / "constant"
    source.mkdir()
    for number in range(40):
        pixels = np.full((48, 48, 3), 128, np.uint8)
        pixels[0, 0] = number  # else they are one image
        Image.fromarray(pixels).save(source / f"{number}.png")
    prepare(PrepareOptions(sources=[source], out=tmp_path / "archive"))
    config = make_config(data__path=str(tmp_path / "archive"), train__steps=200, train__log_every=10, **FEW)
    with caplog.at_level(logging.WARNING):
        pretrain(config)
    assert "collapse at step" in caplog.text
