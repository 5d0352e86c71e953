"""The alarm of a collapse: it comes when embeddings or views tell of one, once, and not in training that learns."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.pretraining import pretrain
from fastfgssl.training.checkpoint import load_checkpoint
from fastfgssl.training.collapse import CollapseAlarm
from fastfgssl.training.hooks import Hook

FEW = {"train__heads": [2], "train__checkpoint_every": 10}
TINY = {"objective": "helpers.tiny_objective", "data__image_size": 16, "train__checkpoint_every": 10}


class Report(Hook):
    """Puts numbers into what is reported from a step on, as a network would that collapses there."""

    def __init__(self, step: int, **logs: float) -> None:
        self._step, self._logs = step, logs

    def __call__(self, moment) -> None:
        if moment.step >= self._step and moment.logs:
            moment.logs.update(self._logs)


@pytest.mark.parametrize(
    ("logs", "said", "settings"),
    [
        ({"effective_rank_2": 1.2}, "head 2: embeddings fill 1.2 directions", TINY),
        pytest.param({"effective_rank_2": 0.0}, "fill 0.0 directions", FEW, marks=pytest.mark.slow),
        pytest.param({"dead_dimensions_2": 20.0}, "20 of 24 dimensions", FEW, marks=pytest.mark.slow),
    ],
)
def test_a_collapse_is_told_once_with_its_picture_and_the_checkpoint_before(make_config, caplog, logs, said, settings):
    config = make_config(train__steps=50, train__log_every=5, train__keep_checkpoints=1, **settings)
    with caplog.at_level(logging.WARNING):
        pretrain(config, hooks=[Report(25, **logs)])
    (text,) = [message for message in caplog.messages if message.startswith("collapse at step")]
    assert text.startswith("collapse at step 45: ")
    assert said in text
    assert "lower optim.lr" in text
    assert (Path(config.output) / "collapse_step_45.png").exists()
    kept = load_checkpoint(Path(config.output) / "checkpoints" / "before_collapse.pt")
    assert kept["step"] <= 20
    # nor again by a start that goes on, whose checkpoints are of a network that has collapsed
    caplog.clear()
    pretrain(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=75)), hooks=[Report(0, **logs)])
    assert "collapse at step" not in caplog.text
    assert load_checkpoint(Path(config.output) / "checkpoints" / "before_collapse.pt")["step"] == kept["step"]


def test_one_odd_batch_is_none_and_so_is_training_that_learns(make_config, caplog):
    config = make_config(train__steps=50, train__log_every=5, **FEW)
    with caplog.at_level(logging.WARNING):
        pretrain(config)
    assert "collapse at step" not in caplog.text


def alarm_of(*, batch_size: int, log_every: int, scored: int = 0, start: int = 0) -> CollapseAlarm:
    """Of a run on a hundred images without a warm-up."""
    alarm = CollapseAlarm(lambda: scored)
    train, optim = SimpleNamespace(batch_size=batch_size, log_every=log_every), SimpleNamespace(warmup_epochs=0.0)
    alarm.begin(
        SimpleNamespace(
            world=SimpleNamespace(is_main=True),
            objective=SimpleNamespace(updates=[SimpleNamespace(dim=128)]),
            config=SimpleNamespace(train=train, optim=optim),
            num_samples=100,
            start=start,
        )
    )
    return alarm


def test_only_what_lasts_is_told(monkeypatch):
    told: list[int] = []
    monkeypatch.setattr(CollapseAlarm, "_tell", lambda self, sign, since, moment: told.append(moment.step))
    alarm = alarm_of(batch_size=10, log_every=10)

    def at(step: int, **logs: float) -> bool:
        before = len(told)
        alarm(SimpleNamespace(step=step, logs={"loss": 1.0} | logs))
        return len(told) > before

    assert not any(at(step, effective_rank_0=30.0, on_diagonal_0=128.0) for step in (10, 20))
    assert not at(30, effective_rank_0=1.0, on_diagonal_0=128.0)  # one batch
    assert not any(at(step, effective_rank_0=20.0, on_diagonal_0=127.0) for step in range(40, 110, 10))
    # a hundred steps, and views of an image are still no more alike than any
    assert [at(step, effective_rank_0=20.0, on_diagonal_0=127.0) for step in (110, 120)] == [False, True]


def test_views_that_find_their_image_less_often_than_at_the_start_are_a_sign(monkeypatch):
    told = []
    monkeypatch.setattr(CollapseAlarm, "_tell", lambda self, sign, since, moment: told.append((since, sign.what)))

    def scores(images: int, *values: float) -> list[tuple[int, str]]:
        """Of a run with a score each fifty steps."""
        told.clear()
        alarm, kept = alarm_of(batch_size=10, log_every=10, scored=images), {}
        for at, value in enumerate(values):
            if at == 3:  # a start that goes on
                kept, alarm = alarm.state_dict(), alarm_of(batch_size=10, log_every=10, scored=images, start=100)
                alarm.load_state_dict(kept)
            for step in range(50 * at, 50 * at + 50, 10):
                score = {"score_matching_all": value} if step == 50 * at else {}
                alarm(SimpleNamespace(step=step, logs=score | ({"loss": 1.0} if step else {})))
        return told

    assert scores(400, 0.3, 0.01, 0.01, 0.4, 0.1, 0.5, 0.1) == []  # before it has trained, and once
    assert scores(400, 0.3, 0.3, 0.25, 0.24, 0.24, 0.25) == []  # by chance
    (since, what), *_ = scores(400, 0.3, 0.3, 0.3, 0.1, 0.05)
    assert (since, what.partition(": ")[2]) == (150, "score_matching_all 0.05, then 0.3")
    assert scores(20, 0.3, 0.3, 0.3, 0.1, 0.05) == []  # of so few


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
