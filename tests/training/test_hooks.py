"""What a run does beside training: pictures, warnings, scores, and where it comes from."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from fastfgssl.data.batch import Batch
from fastfgssl.data.reader import Reader
from fastfgssl.objectives import fgssl, register
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import RankError, UserError
from fastfgssl.training.checkpoint import checkpoint_path
from fastfgssl.training.hooks import DataWaitWarning, Hook, Moment, ViewsPicture
from fastfgssl.training.sinks import read_metrics


def test_waiting_for_data_is_warned_of_when_it_lasts_and_not_again_at_once(caplog):
    now = [0.0]
    warning = DataWaitWarning(intervals=3, pause=3600, now=lambda: now[0])
    warning.begin(SimpleNamespace(output=Path("runs/a b"), world=SimpleNamespace(local_rank=0)))

    def warns(share: float) -> bool:
        caplog.clear()
        warning(Moment(1, {"data_wait": share}, None))
        return bool(caplog.messages)

    # the first report fills the pipelines; then 5 % is still fine, and the count starts anew
    assert not any(warns(share) for share in (0.9, 0.2, 0.2, 0.05, 0.2, 0.2))
    assert warns(0.5)
    assert "30% of the time of the last 3 reports" in caplog.text
    assert "fastfgssl doctor --config 'runs/a b/config.yaml'" in caplog.text
    now[0] = 3599.0
    assert not warns(0.5)
    now[0] = 3601.0
    assert not warns(0.0)  # it has caught up
    assert [warns(0.5) for _ in range(4)] == [False, False, True, False]


def test_training_names_the_doctor_where_it_waits(make_config, monkeypatch, caplog):
    read = Reader.read
    monkeypatch.setattr(Reader, "read", lambda reader, ids: time.sleep(0.8) or read(reader, ids))  # slower than steps
    config = make_config(train__steps=10, train__heads=[0])
    with caplog.at_level(logging.WARNING):
        pretrain(config)
    assert caplog.text.count("was spent waiting for data") == 1
    assert f"fastfgssl doctor --config {config.output}/config.yaml" in caplog.text


def test_scores_while_training_change_nothing_that_is_learned(make_config, tmp_path):
    plain = make_config(output=str(tmp_path / "plain"))
    scored = make_config(output=str(tmp_path / "scored"), evaluate__every=2, evaluate__images=20)
    pretrain(plain)
    pretrain(scored)
    records = read_metrics(tmp_path / "scored")
    names = {f"score_{kind}_{features}" for kind in ("matching", "knn") for features in ("all", "backbone")}
    assert [record["step"] for record in records if names <= record.keys()] == [0, 2, 4]
    assert records[0].keys() == names | {"step", "epoch"}
    assert all({"epoch", "loss", "lr"} <= record.keys() for record in records[1:])
    assert all(0 <= record[name] <= 1 for record in records for name in names & record.keys())
    losses = [record["loss"] for record in read_metrics(tmp_path / "plain")]
    assert [record["loss"] for record in records if record["step"] > 0] == losses


def test_scores_leave_what_is_frozen_as_it_is(make_config):
    built = []

    def build_frozen(config, world, *, fresh):
        built.append(fgssl.build(config, world, fresh=fresh))
        built[-1].model.backbone.eval()
        return built[-1]

    register("test_frozen", build_frozen)
    pretrain(make_config(objective="test_frozen", train__steps=1, evaluate__every=1, evaluate__images=20))
    model = built[0].model
    assert not any(module.training for module in model.backbone.modules())
    assert model.training
    assert all(module.training for module in model.heads.modules())


def test_the_picture_shows_what_the_objective_needs(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, title, **_: titles.append(title))
    run = SimpleNamespace(
        output=tmp_path,
        world=SimpleNamespace(is_main=True),
        objective=SimpleNamespace(needs=SimpleNamespace(grids=(0, 0, 0, 5))),
        config=SimpleNamespace(
            model=SimpleNamespace(grids=(16, 8, 4)), data=SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3)
        ),
    )
    picture = ViewsPicture()
    picture.begin(run)
    picture(Moment(0, {}, Batch(None, None, (None, None, None, torch.zeros(2, 3, 32, 32)), np.arange(2))))
    assert titles == ["puzzle 5 x 5"]
    assert (tmp_path / "views.png").exists()


def test_a_start_tells_where_a_run_comes_from(make_config):
    config = make_config(train__steps=1)
    pretrain(config)
    pretrain(make_config(train__steps=2))
    first, second = json.loads((Path(config.output) / "provenance.json").read_text())
    assert (first["step"], second["step"]) == (0, 1)
    assert {"command", "fastfgssl", "commit", "packages", "ranks", "device"} <= first.keys()
    assert "torch" in first["packages"]


class Failing(Hook):
    every = 2

    def __call__(self, moment: Moment) -> None:
        if moment.step == 2:
            raise UserError("no room for a score")


def test_an_error_of_a_hook_ends_the_run_and_closes_the_others(make_config):
    closed = []

    class Closing(Hook):
        def __call__(self, moment: Moment) -> None:
            pass

        def end(self) -> None:
            closed.append(True)

    config = make_config()
    with pytest.raises(UserError, match="no room for a score"):
        pretrain(config, hooks=[Closing(), Failing()])
    assert closed == [True]
    assert [record["step"] for record in read_metrics(Path(config.output))] == [1]


def test_an_error_of_a_hook_between_reports_reaches_the_user_from_any_rank(make_config):
    with pytest.raises(RankError, match="no room for a score"):  # which every rank prints
        pretrain(make_config(train__log_every=100), hooks=[Failing()])


class FailsToEnd(Hook):
    def __call__(self, moment: Moment) -> None:
        pass

    def end(self) -> None:
        raise UserError("cannot write the rest")


def test_an_error_at_the_end_hides_no_other(make_config, caplog):
    with pytest.raises(UserError, match="no room for a score"):
        pretrain(make_config(), hooks=[Failing(), FailsToEnd()])
    assert "FailsToEnd: cannot write the rest" in caplog.messages
    with pytest.raises(UserError, match="cannot write the rest"):
        pretrain(make_config(), hooks=[FailsToEnd()])


class Scores(Hook):
    """Reports a score every other step, and remembers whether that step was saved before."""

    every = 2
    wants_logs = True

    def __init__(self) -> None:
        self.saved = {}

    def begin(self, run) -> None:
        self._checkpoints = run.output / "checkpoints"

    def __call__(self, moment: Moment) -> None:
        self.saved[moment.step] = checkpoint_path(self._checkpoints, moment.step).exists()
        moment.logs["score"] = 1.0


@pytest.mark.parametrize("last", [2, 3])
def test_a_run_that_is_stopped_is_saved_at_once_and_reports_no_more_than_one_that_is_not(make_config, tmp_path, last):
    settings = {"train__steps": 5, "train__log_every": 2, "train__sinks": ["csv"]}
    pretrain(make_config(output=str(tmp_path / "whole"), **settings), hooks=[Scores()])
    config, hook, answers = make_config(output=str(tmp_path / "stopped"), **settings), Scores(), [None] * (last - 1)
    outcome = pretrain(config, hooks=[hook], stop_signal=iter([*answers, 15]).__next__)
    assert outcome[:2] == (last, 15)
    assert outcome.checkpoint.exists()
    assert hook.saved == {0: True, 2: last == 2}
    pretrain(config, hooks=[Scores()])
    whole, stopped = (read_metrics(tmp_path / name) for name in ("whole", "stopped"))
    timed = {"images_per_second": 0, "data_wait": 0}
    assert [record["step"] for record in whole] == [0, 2, 4, 5]
    assert [record | timed for record in stopped[1:]] == [record | timed for record in whole[1:]]
    assert stopped[0] == whole[0]
    steps = [line.partition(",")[0] for line in (tmp_path / "stopped" / "metrics.csv").read_text().splitlines()]
    assert steps == ["step", "0", "2", "4", "5"]
