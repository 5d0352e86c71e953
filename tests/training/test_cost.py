"""What a run says that it has cost: over all its starts, those that were killed too."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastfgssl.pretraining import pretrain
from fastfgssl.training.cost import CostOfRun, cost_of, read_starts
from fastfgssl.training.hooks import Hook


def test_the_share_of_time_that_was_training():
    starts = [
        {"step": 0, "last_step": 130, "seconds": 130.0, "seconds_waiting": 13.0, "begin": 0.0, "end": 140.0},
        {"step": 0},  # killed before it reported anything
        {"step": 100, "last_step": 200, "seconds": 100.0, "seconds_waiting": 10.0, "begin": 190.0, "end": 300.0},
    ]
    cost = cost_of(starts)
    assert (cost.steps, cost.starts, cost.steps_made_twice) == (200, 3, 30)
    assert (cost.training, cost.waiting, cost.wall) == (230.0, 23.0, 300.0)
    assert cost.ettr == pytest.approx(207 * 200 / 230 / 300)


def test_a_clock_that_is_put_back_between_two_starts_gives_no_share_above_one():
    start = {"step": 0, "last_step": 10, "seconds": 90.0, "seconds_waiting": 0.0, "begin": 5000.0, "end": 5100.0}
    later = start | {"step": 10, "last_step": 20, "begin": 1000.0, "end": 1100.0}
    assert cost_of([start, later])[5:] == (200.0, 0.9)


class Kill(Hook):
    """What ends a process without its `finally`, as far as this process can live on."""

    def __call__(self, moment) -> None:
        if moment.step == 3:
            raise KeyboardInterrupt


def test_a_killed_run_tells_at_its_end_what_was_made_twice(make_config, caplog, monkeypatch):
    config = make_config(train__steps=4, train__heads=[0], train__checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(CostOfRun, "end", lambda hook: None)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, hooks=[Kill()])
    metrics = Path(config.output) / "metrics.jsonl"
    with metrics.open("a") as file:  # the report of step 3, after which it was killed
        file.write(json.dumps({"step": 3, "images_per_second": 12.0, "data_wait": 0.5}) + "\n")
    with caplog.at_level(logging.INFO):
        pretrain(config)
    said = next(message for message in caplog.messages if message.startswith("cost: "))
    assert re.match(
        r"cost: 4 steps in 2 starts, 1 made twice; \d+% of the time of steps was waiting for data; 0 im", said
    )
    first, last = json.loads((Path(config.output) / "provenance.json").read_text())
    assert first["last_step"] == 3
    assert 0 < last["cost"]["ettr"] < 1


def test_another_number_of_ranks_is_told_where_batch_norms_see_another_share(make_config, caplog):
    config = make_config(objective="helpers.tiny_objective", train__steps=2, train__batch_norm="local")
    pretrain(config)
    history = Path(config.output) / "provenance.json"
    history.write_text(history.read_text().replace('"ranks": 1', '"ranks": 2'))
    pretrain(replace(config, train=replace(config.train, steps=4)))
    assert "the run was on 2 rank(s) and is on 1 now" in caplog.text
    caplog.clear()
    history.write_text(json.dumps([{"a": 1}, 5]))  # a record is not worth a run
    assert pretrain(replace(config, train=replace(config.train, steps=5))).steps_done == 5
    assert "rank(s)" not in caplog.text


def test_steps_that_were_not_reported_count_too(make_config):
    config = make_config(objective="helpers.tiny_objective", train__steps=3, train__log_every=100)
    asked = []
    pretrain(config, stop_signal=lambda: asked.append(1) or (15 if len(asked) == 2 else None))
    (start,) = read_starts(Path(config.output) / "provenance.json")
    assert start["last_step"] == 2
    assert start["seconds"] > 0
