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
from fastfgssl.training.sinks import Csv, JsonLines, Mlflow, TensorBoard, read_metrics


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
    assert wandb.started[0]["id"] == wandb.started[1]["id"] == (output / "wandb_run_id").read_text()
    assert wandb.started[0]["config"]["train.batch_size"] == 12
    assert [run for run, _ in mlflow.started] == [None, "an-id"]
    assert len(mlflow.params) == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_sink_whose_package_is_missing_is_one_line(make_config, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"train.sinks: {name} is not installed: pip install 'fastfgssl\[{name}\]'"):
        pretrain(make_config(train__sinks=[name]))


def test_folders_of_one_name_are_runs_of_their_own(make_config, fakes, tmp_path):
    wandb, _ = fakes
    for person in ("ann", "bo"):
        pretrain(make_config(train__steps=1, train__sinks=["wandb"], output=str(tmp_path / person / "runs" / "first")))
    first, second = wandb.started
    assert first["name"] == second["name"] == "runs-first"
    assert first["id"] != second["id"]


def refuse(*args, **options):
    raise ConnectionError("connection\nrefused")


@pytest.mark.parametrize(("name", "call"), [("wandb", "init"), ("mlflow", "start_run"), ("mlflow", "log_params")])
def test_a_service_that_does_not_start_is_one_line(make_config, fakes, monkeypatch, name, call):
    monkeypatch.setattr(sys.modules[name], call, refuse)
    with pytest.raises(UserError, match=rf"^train.sinks: {name} does not start: connection refused; .*leave it out$"):
        pretrain(make_config(train__sinks=[name]))
    if call == "log_params":
        assert fakes[1].ended == 1  # or the next run of this process could not start


@pytest.mark.parametrize(("name", "call"), [("wandb", "log"), ("mlflow", "log_metrics")])
@pytest.mark.parametrize("also", ["finish", "end_run", ""])
def test_a_service_that_fails_later_is_told_once_and_training_goes_on(
    make_config, fakes, monkeypatch, caplog, name, call, also
):
    for broken in filter(None, (call, also)):
        monkeypatch.setattr(sys.modules[name], broken, refuse, raising=False)
    config = make_config(train__sinks=[name])
    assert pretrain(config).steps_done == len(read_metrics(Path(config.output))) == 4
    (told,) = [record.getMessage() for record in caplog.records if record.name == "fastfgssl.training.sinks"]
    assert told.startswith(f"{name} takes no reports: connection refused; training goes on, metrics.jsonl has them all")


def test_a_service_that_failed_is_tried_again_after_a_while(fakes, monkeypatch, run):
    _, mlflow = fakes
    calls = []

    def fail_first(values, step):
        calls.append(step)
        if len(calls) == 1:
            refuse()

    times = iter([0.0, 0.0, 599.0, 601.0])
    monkeypatch.setattr(mlflow, "log_metrics", fail_first)
    monkeypatch.setattr("fastfgssl.training.sinks.config_to_values", vars)
    monkeypatch.setattr("fastfgssl.training.sinks.time.monotonic", lambda: next(times))
    write(Mlflow(), run(0), {step: {"loss": 1.0} for step in (1, 2, 3)})
    assert calls == [1, 3]


@pytest.fixture
def run(tmp_path):
    def make(start: int):
        return SimpleNamespace(
            output=tmp_path, start=start, config=SimpleNamespace(), world=SimpleNamespace(is_main=True)
        )

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


def test_a_curve_is_drawn_again_from_the_checkpoint_on(run, tmp_path):
    write(TensorBoard(), run(0), {1: {"loss": 1.0}, 2: {"loss": 2.0}, 3: {"loss": 3.0}})
    write(TensorBoard(), run(1), {2: {"loss": 20.0}})
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("loss/loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 20.0)]


WHOLE = b"step,loss\n1,1.0\n2,2.0\n"


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [
        (WHOLE + b",3", WHOLE),
        (WHOLE + b",3\n", WHOLE),
        (WHOLE + b"2,2.", WHOLE),
        (WHOLE + b"\0\0\0\0", WHOLE),
        (WHOLE + b"2,\0\n", WHOLE),
        (b"step,loss\n1,\xff\xfe1.0\n2,2.0\n", b"step,loss\n2,2.0\n"),
        (b'step,loss\n"1,1.0\n2,2.0\n', b"step,loss\n2,2.0\n"),
        (b"step,loss\n1,1.0,7,8\n2,2.0\n", b"step,loss\n2,2.0\n"),
        (b"step,loss,note\n1,1.0,\n2,2.0,good\n", b"step,loss,note\n1,1.0,\n2,2.0,good\n"),
        (b"time,loss\n1,1.0\n", b""),
        (b"step,loss,loss\n1,1.0,1.0\n", b""),
        (b"1,1.0\n2,2.0\n", b""),
        (b"", b""),
        (b"\n\n", b""),
    ],
)
def test_lines_of_a_damaged_table_are_dropped(run, tmp_path, damaged, kept):
    file = tmp_path / "metrics.csv"
    file.write_bytes(damaged)
    write(Csv(), run(2), {3: {"loss": 3.0}})
    end = b"3,3.0,\n" if b"note" in kept else b"3,3.0\n"
    assert file.read_text().encode() == (kept or b"step,loss\n") + end


def test_a_number_that_is_not_finite_is_null_in_json_and_no_point_of_a_curve(run, tmp_path):
    for sink in (JsonLines(), TensorBoard()):
        write(sink, run(0), {1: {"loss": math.nan}, 2: {"loss": math.inf}})
    assert [record["loss"] for record in read_metrics(tmp_path)] == [None, None]
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"] == []
