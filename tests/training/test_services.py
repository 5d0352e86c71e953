"""Services that reports go to: a run that goes on, one that starts anew, and servers that refuse or do not answer."""

from __future__ import annotations

import csv
import math
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.sinks import read_metrics


class FakeWandb:
    """Stands for the package wandb: keeps what it is given."""

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
    """Stands for the package mlflow and its client: keeps runs by id, and an active one that is the user's own."""

    def __init__(self) -> None:
        self.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: (step, key, value), Param=lambda key, value: (key, value)
        )
        self.active, self.experiments, self.runs, self.logged, self.params, self.ended = (
            "the user's",
            {},
            [],
            {},
            [],
            [],
        )

    def MlflowClient(self):
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        return self.experiments.setdefault(name, f"{name}'s id")

    def create_run(self, experiment_id, run_name):
        self.runs.append((experiment_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run-{len(self.runs)}"))

    def update_run(self, run_id, status):
        assert (run_id in self.ended, status) == (True, "RUNNING")

    def log_batch(self, run_id, metrics=(), params=()):
        self.params += [params] if params else []
        for step, name, value in metrics:
            assert math.isfinite(value)
            self.logged.setdefault(step, {})[name] = value

    def set_terminated(self, run_id):
        self.ended.append(run_id)

    def start_run(self, run_id=None, run_name=None, nested=False):
        if self.active is not None and not nested:
            raise RuntimeError(f"Run with UUID {self.active} is already active")
        self.active = run_id or "another"
        return SimpleNamespace(info=SimpleNamespace(run_id=self.active))

    def end_run(self):
        self.active = None


@pytest.fixture
def fakes(monkeypatch):
    wandb, mlflow = FakeWandb(), FakeMlflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return wandb, mlflow


def test_every_sink_is_given_the_same_and_a_run_that_goes_on_is_one_run(make_config, fakes):
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
    for logged in (wandb.logged, mlflow.logged.items()):
        assert [(step, values["loss"]) for step, values in logged] == [(r["step"], r["loss"]) for r in records]
    assert wandb.finished == len(mlflow.ended) == 2
    assert wandb.started[0]["id"] == wandb.started[1]["id"] == (output / "wandb_run_id").read_text()
    assert wandb.started[0]["config"]["train.batch_size"] == 12
    assert mlflow.runs == [("0", "run")]
    assert len(mlflow.params) == 1


def test_a_run_that_starts_anew_is_a_new_one_at_its_services(make_config, fakes):
    wandb, mlflow = fakes
    config = make_config(train__steps=1, train__sinks=["wandb", "mlflow"])
    pretrain(config)
    shutil.rmtree(Path(config.output) / "checkpoints")
    pretrain(config)
    assert wandb.started[0]["id"] != wandb.started[1]["id"] == (Path(config.output) / "wandb_run_id").read_text()
    assert mlflow.ended == ["run-1", "run-2"]


def test_a_run_of_the_users_own_stays_active(make_config, fakes, monkeypatch, tmp_path):
    _, mlflow = fakes
    pretrain(make_config(train__steps=1, train__sinks=["mlflow"]))
    monkeypatch.setattr(mlflow, "log_batch", refuse)
    with pytest.raises(UserError, match="mlflow does not start"):
        pretrain(make_config(train__steps=1, train__sinks=["mlflow"], output=str(tmp_path / "other")))
    assert mlflow.active == "the user's"


@pytest.mark.parametrize(
    ("variables", "experiment"),
    [({"NAME": "lesions"}, "lesions's id"), ({"NAME": "known"}, "7"), ({"ID": "8", "NAME": "known"}, "8")],
)
def test_the_experiment_is_the_one_that_variables_name(make_config, fakes, monkeypatch, variables, experiment):
    _, mlflow = fakes
    mlflow.experiments["known"] = "7"
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_EXPERIMENT_{name}", value)
    pretrain(make_config(train__steps=1, train__sinks=["mlflow"]))
    assert mlflow.runs == [(experiment, "run")]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_whose_package_is_missing_is_one_line(make_config, monkeypatch, name):
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


@pytest.mark.parametrize(("name", "call"), [("wandb", "init"), ("mlflow", "create_run"), ("mlflow", "log_batch")])
def test_a_service_that_does_not_start_is_one_line(make_config, fakes, monkeypatch, name, call):
    monkeypatch.setattr(sys.modules[name], call, refuse)
    with pytest.raises(UserError, match=rf"^train.sinks: {name} does not start: connection refused; .*leave it out$"):
        pretrain(make_config(train__sinks=[name]))
    if call == "log_batch":
        assert fakes[1].ended == ["run-1"]  # or it would be shown as running for ever


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fastfgssl.training.services"]


@pytest.mark.parametrize("also", ["close", ""])
@pytest.mark.parametrize("name", ["WeightsAndBiases", "Mlflow"])
def test_a_service_that_fails_later_warns_once_and_training_goes_on(
    make_config, fakes, monkeypatch, caplog, name, also
):
    for broken in filter(None, ("write", also)):
        monkeypatch.setattr(f"fastfgssl.training.services.{name}.{broken}", refuse)
    service = {"WeightsAndBiases": "wandb", "Mlflow": "mlflow"}[name]
    config = make_config(train__sinks=[service])
    assert pretrain(config).steps_done == len(read_metrics(Path(config.output))) == 4
    assert warnings(caplog) == [f"{service} does not accept metrics: connection refused; metrics.jsonl has them all"]


def test_a_service_that_answers_again_gets_what_follows(make_config, fakes, monkeypatch):
    wandb, _ = fakes
    log = wandb.log
    monkeypatch.setattr(wandb, "log", lambda values, step: refuse() if step == 1 else log(values, step))
    pretrain(make_config(train__sinks=["wandb"]))
    assert [step for step, _ in wandb.logged] == [2, 3, 4]


@pytest.mark.parametrize(
    ("most", "problem"), [(1000, "0 seconds after the end of training"), (1, "1 reports wait for it")]
)
def test_training_does_not_wait_for_a_service_that_hangs(make_config, fakes, monkeypatch, caplog, most, problem):
    answers = threading.Event()
    monkeypatch.setattr(fakes[0], "log", lambda values, step: answers.wait())
    monkeypatch.setattr("fastfgssl.training.services._PATIENCE", 0.1)
    monkeypatch.setattr("fastfgssl.training.services._MOST_WAITING", most)
    try:
        config = make_config(train__sinks=["wandb"])
        assert pretrain(config).steps_done == len(read_metrics(Path(config.output))) == 4
    finally:
        answers.set()
    (warning,) = warnings(caplog)
    assert warning.startswith(f"wandb does not accept metrics: {problem}")
