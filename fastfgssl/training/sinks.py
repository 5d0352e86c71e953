"""Where reports are kept: metrics.jsonl, TensorBoard, metrics.csv, Weights & Biases, MLflow; a hook each.

A sink writes on the first rank whatever a moment has to report. A run that goes on makes, and reports, the steps beyond
its checkpoint again: metrics.jsonl, metrics.csv and TensorBoard drop what they had of them. A service keeps
what it has: Weights & Biases ignores the second report of a step, MLflow shows both.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import logging
import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from fastfgssl.config.files import config_to_values
from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import write_whole
from fastfgssl.training.csv_table import read_table
from fastfgssl.training.hooks import Hook, Moment, Run

log = logging.getLogger(__name__)
_SECONDS_OF_SILENCE = 600.0
"""After a service has failed: to try may itself take minutes, for which training waits."""
_STAGES = ("0", "1", "2", "all")
_OF_TRAINING = ("epoch", "lr", "backbone_lr", "bias_lr", "images_per_second", "data_wait")


class Sink(Hook):
    """Opens on the first rank, writes what is reported there, and closes."""

    _is_open = False

    def begin(self, run: Run) -> None:
        if run.world.is_main:
            self.open(run)
            self._is_open = True

    def __call__(self, moment: Moment) -> None:
        if self._is_open and moment.logs:
            self.write(moment.step, moment.logs)

    def end(self) -> None:
        if self._is_open:
            self._is_open = False
            self.close()

    def open(self, run: Run) -> None:
        raise NotImplementedError

    def write(self, step: int, logs: dict[str, float]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class JsonLines(Sink):
    """metrics.jsonl: an object a report; null stands for a number that is not finite, which JSON does not know."""

    def open(self, run: Run) -> None:
        self._path = run.output / "metrics.jsonl"
        with file_errors("write", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                lines = self._path.read_text(errors="replace").splitlines()
                kept = "".join(f"{line}\n" for line in lines if _step_of(line) <= run.start)
                write_whole(self._path, lambda file: file.write(kept.encode()))
            self._file = self._path.open("a", buffering=1)

    def write(self, step: int, logs: dict[str, float]) -> None:
        record = {"step": step} | {name: value if math.isfinite(value) else None for name, value in logs.items()}
        with file_errors("write", self._path):
            self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoard(Sink):
    """Events in the output folder."""

    def open(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second

        with file_errors("write", run.output):
            self._writer = SummaryWriter(str(run.output), purge_step=run.start + 1)

    def write(self, step: int, logs: dict[str, float]) -> None:
        for name, value in logs.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{_group(name)}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class Csv(Sink):
    """metrics.csv: a row a report, a column a number; a number that comes later gets a column of its own."""

    def open(self, run: Run) -> None:
        self._path = run.output / "metrics.csv"
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []
        with file_errors("read", self._path):
            if self._path.exists():
                self._columns, rows = read_table(self._path.read_bytes().decode(errors="replace"))
                self._rows = [row for row in rows if float(row["step"]) <= run.start]
        self._rewrite()

    def write(self, step: int, logs: dict[str, float]) -> None:
        row = {"step": step} | logs
        new = [name for name in row if name not in self._columns]
        self._rows.append(row)
        if new:
            self._columns += new
            self._rewrite()
            return
        with file_errors("write", self._path), self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        if self._columns:
            writer.writeheader()
        writer.writerows(self._rows)
        with file_errors("write", self._path):
            write_whole(self._path, lambda file: file.write(text.getvalue().encode()))


class Service(Sink):
    """A package that reports to a service of its own, which is not worth the run once that has begun.

    What keeps it from starting is a `UserError`; a later failure is a warning, once, and a pause.
    """

    package: str
    advice: str
    """What to do where it does not start."""

    _silent_until = -math.inf
    _has_warned = False

    def begin(self, run: Run) -> None:
        try:
            super().begin(run)
        except UserError:
            raise
        except Exception as error:
            with suppress(Exception):  # what has been started of it
                self.close()
            raise UserError(
                f"train.sinks: {self.package} does not start: {_in_a_line(error)}; {self.advice}, or leave it out"
            ) from error

    def __call__(self, moment: Moment) -> None:
        if time.monotonic() < self._silent_until:
            return
        with self._failures_told():
            super().__call__(moment)

    def end(self) -> None:
        with self._failures_told():
            super().end()

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._silent_until = time.monotonic() + _SECONDS_OF_SILENCE
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "%s takes no reports: %s; training goes on, metrics.jsonl has them all, and it is tried again every"
                    " %.0f minutes",
                    self.package,
                    _in_a_line(error),
                    _SECONDS_OF_SILENCE / 60,
                )


class WeightsAndBiases(Service):
    """A run of wandb, under the project that its own variables name (WANDB_PROJECT); the output folder keeps its id."""

    package = "wandb"
    advice = "log in with `wandb login`, or set WANDB_MODE=offline"

    def open(self, run: Run) -> None:
        wandb = _import(self.package)
        marker = run.output / "wandb_run_id"
        run_id = _read_marker(marker) or uuid.uuid4().hex
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
    """A run of MLflow, where its own variables say (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME)."""

    package = "mlflow"
    advice = "see that the server of MLFLOW_TRACKING_URI answers"

    def open(self, run: Run) -> None:
        self._mlflow = _import(self.package)
        marker = run.output / "mlflow_run_id"
        known = _read_marker(marker)
        active = self._mlflow.start_run(run_id=known, run_name=run.output.name)
        if known is None:
            _write_marker(marker, active.info.run_id)
            self._mlflow.log_params(config_to_values(run.config))

    def write(self, step: int, logs: dict[str, float]) -> None:
        self._mlflow.log_metrics({name: value for name, value in logs.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


_SINKS: dict[str, type[Sink]] = {
    "tensorboard": TensorBoard,
    "csv": Csv,
    "wandb": WeightsAndBiases,
    "mlflow": Mlflow,
}


def make_sinks(names: tuple[str, ...]) -> list[Sink]:
    """metrics.jsonl, which every run has, and the sinks of these names."""
    return [JsonLines(), *(_SINKS[name]() for name in names)]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, in the order of steps."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"train.sinks: {package} is not installed: pip install 'fastfgssl[{package}]', or leave it out"
        ) from None


def _read_marker(file: Path) -> str | None:
    """The id of the run that the folder has at a service; None if it has none yet."""
    with file_errors("read", file):
        return file.read_text(errors="replace").strip() or None if file.exists() else None


def _write_marker(file: Path, run_id: str) -> None:
    with file_errors("write", file):
        file.write_text(run_id)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _group(name: str) -> str:
    """Under which heading TensorBoard shows a number."""
    stem, _, last = name.rpartition("_")
    if name.startswith("loss"):
        return "loss"
    if name in _OF_TRAINING or not stem:
        return "train"
    return stem if last in _STAGES else name.partition("_")[0]


def _step_of(line: str) -> float:
    """The step of a line; infinite for a line that was cut short, or is none of ours."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
