"""Where reports are kept: every sink of one run, one that goes on, and what is missing."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.sinks import Csv, JsonLines, TensorBoard, read_metrics


class FakeWandb:
    """Stands for the package wandb: keeps what it is told."""

    def __init__(self) -> None:
        self.started, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.started.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


class FakeMlflow:
    """Stands for the package mlflow."""

    def __init__(self) -> None:
        self.started, self.params, self.logged, self.ended = [], [], [], 0

    def start_run(self, run_id, run_name):
        self.started.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "an-id"))

    def log_params(self, params):
        self.params.append(params)

    def log_metrics(self, values, step):
        assert all(math.isfinite(value) for value in values.values())
        self.logged.append((step, values))

    def end_run(self):
        self.ended += 1


@pytest.fixture
def fakes(monkeypatch):
    wandb, mlflow = FakeWandb(), FakeMlflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return wandb, mlflow


def test_every_sink_is_told_the_same_and_a_run_that_goes_on_is_one_run(make_config, fakes):
    wandb, mlflow = fakes
    sinks = ["tensorboard", "csv", "wandb", "mlflow"]
    config = make_config(train__steps=2, train__sinks=sinks)
    pretrain(config)
    pretrain(make_config(train__steps=3, train__sinks=sinks))
    output = Path(config.output)
    records = read_metrics(output)
    assert [record["step"] for record in records] == [1, 2, 3]
    rows = list(csv.DictReader((output / "metrics.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [record["loss"] for record in records]
    events = EventAccumulator(str(output)).Reload()
    assert [scalar.value for scalar in events.Scalars("loss/loss")] == pytest.approx([r["loss"] for r in records])
    for logged in (wandb.logged, mlflow.logged):
        assert [(step, values["loss"]) for step, values in logged] == [(r["step"], r["loss"]) for r in records]
    assert wandb.finished == mlflow.ended == 2
    assert wandb.started[0]["id"] == wandb.started[1]["id"]
    assert wandb.started[0]["config"]["train.batch_size"] == 12
    assert [run for run, _ in mlflow.started] == [None, "an-id"]
    assert len(mlflow.params) == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_sink_whose_package_is_missing_is_one_line(make_config, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"train.sinks: {name} is not installed: pip install 'fastfgssl\[{name}\]'"):
        pretrain(make_config(train__sinks=[name]))


@pytest.fixture
def run(tmp_path):
    def make(start: int):
        return SimpleNamespace(output=tmp_path, start=start, world=SimpleNamespace(is_main=True))

    return make


def write(sink, run, reports: dict[int, dict[str, float]]) -> None:
    sink.begin(run)
    for step, logs in reports.items():
        sink(SimpleNamespace(step=step, logs=logs))
    sink.end()


def test_a_number_that_comes_later_gets_a_column(run, tmp_path):
    write(Csv(), run(0), {1: {"loss": 1.0}, 2: {"loss": 2.0, "score": 0.5}, 3: {"loss": 3.0}})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,score\n1,1.0,\n2,2.0,0.5\n3,3.0,\n"


@pytest.mark.parametrize("sink", [JsonLines, Csv])
def test_what_was_reported_beyond_the_checkpoint_is_dropped(run, sink, tmp_path):
    write(sink(), run(0), {1: {"loss": 1.0}, 2: {"loss": 2.0}, 3: {"loss": 3.0}})
    write(sink(), run(1), {2: {"loss": 20.0}})
    (file,) = tmp_path.iterdir()
    lines = file.read_text().splitlines()
    assert "3.0" not in "".join(lines)
    assert ["20.0" in line for line in lines[-2:]] == [False, True]


def test_a_number_that_is_not_finite_is_null_in_json_and_no_point_of_a_curve(run, tmp_path):
    for sink in (JsonLines(), TensorBoard()):
        write(sink, run(0), {1: {"loss": math.nan}, 2: {"loss": math.inf}})
    assert [record["loss"] for record in read_metrics(tmp_path)] == [None, None]
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"] == []
