"""Services that reports go to: Weights & Biases, MLflow. Sinks that can neither end a run nor keep it waiting.

A run that goes on reports the steps beyond its checkpoint again, and a service keeps what it has: Weights & Biases
ignores the second report of a step, MLflow shows both.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import ModuleType
from typing import Any

from fastfgssl.config.files import config_to_values
from fastfgssl.runtime.errors import UserError, file_errors, in_a_line
from fastfgssl.training.hooks import Moment, Run, Sink

log = logging.getLogger(__name__)
_MOST_WAITING = 1000
"""Reports that are kept for a service that does not answer."""
_PATIENCE = 20.0
"""Seconds that a run waits at its end for a service; torchrun and Slurm grant a run that they stop 30."""


class Service(Sink):
    """A package that reports to a service of its own, which is not worth the run once that has begun.

    What keeps it from starting is a `UserError`, later failures are a warning, once: `write` and `close` are called in
    a thread of their own, and training goes on meanwhile.
    """

    package: str
    advice: str
    """What to do where it does not start."""

    _has_warned = False

    def begin(self, run: Run) -> None:
        try:
            super().begin(run)
        except Exception as error:
            with suppress(Exception):  # what has been started of it
                self.close()
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"train.sinks: {self.package} does not start: {in_a_line(error)}; {self.advice}, or leave it out"
            ) from error
        if self._is_open:
            self._reports: SimpleQueue[tuple[int, dict[str, float]] | None] = SimpleQueue()
            self._thread = Thread(target=self._send, name=self.package, daemon=True)
            self._thread.start()

    def __call__(self, moment: Moment) -> None:
        if not self._is_open or not moment.logs:
            return
        if self._reports.qsize() < _MOST_WAITING:
            self._reports.put((moment.step, dict(moment.logs)))
        else:
            self._warn(f"{_MOST_WAITING} reports wait for it, and those that follow are dropped")

    def end(self) -> None:
        if self._is_open:
            self._is_open = False
            self._reports.put(None)
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                self._warn(f"{_PATIENCE:.0f} seconds after the end of training it has not taken all of them")

    def _send(self) -> None:
        while (report := self._reports.get()) is not None:
            with self._warn_on_failure():
                self.write(*report)
        with self._warn_on_failure():
            self.close()

    @contextmanager
    def _warn_on_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._warn(in_a_line(error))

    def _warn(self, problem: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("%s does not accept metrics: %s; metrics.jsonl has them all", self.package, problem)


class WeightsAndBiases(Service):
    """A run of wandb, under the project that its own variables name (WANDB_PROJECT); the output folder keeps its id."""

    package = "wandb"
    advice = "log in with `wandb login`, or set WANDB_MODE=offline"

    def open(self, run: Run) -> None:
        wandb = _import(self.package)
        marker = run.output / "wandb_run_id"
        run_id = _read_marker(marker, run) or uuid.uuid4().hex
        self._run = wandb.init(
            project=None,
            name="-".join(run.output.absolute().parts[-2:]),
            id=run_id,
            resume="allow",
            dir=str(run.output),
            config=config_to_values(run.config),
        )
        _write_marker(marker, run_id)

    def write(self, step: int, logs: dict[str, float]) -> None:
        self._run.log(logs, step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow(Service):
    """A run of MLflow, where its own variables say (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME or _ID).

    It is not the active run of this process, which may be one of the user's own.
    """

    package = "mlflow"
    advice = "see that the server of MLFLOW_TRACKING_URI answers"

    def open(self, run: Run) -> None:
        mlflow = _import(self.package)
        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        marker = run.output / "mlflow_run_id"
        known = _read_marker(marker, run)
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self._run_id = known
            return
        self._run_id = self._client.create_run(_experiment(self._client), run_name=run.output.name).info.run_id
        _write_marker(marker, self._run_id)
        params = [self._entities.Param(key, str(value)) for key, value in config_to_values(run.config).items()]
        self._client.log_batch(self._run_id, params=params)

    def write(self, step: int, logs: dict[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        finite = {name: value for name, value in logs.items() if math.isfinite(value)}
        metrics = [self._entities.Metric(name, value, now, step) for name, value in finite.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _experiment(client: Any) -> str:
    """The id of the experiment that MLflow's variables name; one that is named and not there yet is made."""
    if known := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return known
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return "0"  # MLflow's default
    experiment = client.get_experiment_by_name(name)
    return experiment.experiment_id if experiment else client.create_experiment(name)


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"train.sinks: {package} is not installed: pip install 'fastfgssl[{package}]', or leave it out"
        ) from None


def _read_marker(file: Path, run: Run) -> str | None:
    """The id that `run` has at a service; None if it has none yet, whatever an earlier run has left in its folder."""
    with file_errors("read", file):
        return None if run.is_new or not file.exists() else file.read_text(errors="replace").strip() or None


def _write_marker(file: Path, run_id: str) -> None:
    with file_errors("write", file):
        file.write_text(run_id)
