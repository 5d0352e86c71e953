"""Where reports are kept: metrics.jsonl, TensorBoard, metrics.csv, and services (services.py); a hook each.

A sink writes on the first rank whatever a moment has to report. Where `output` does not take it, the run pauses; with
an `output_fallback` it goes on, and what was not taken is written when it can be. A run that goes on makes the steps
beyond its checkpoint again, and reports them: metrics.jsonl, metrics.csv and TensorBoard drop what they had of them.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastfgssl.runtime.errors import file_errors
from fastfgssl.runtime.files import is_at, write_whole
from fastfgssl.runtime.patience import persistently
from fastfgssl.training.csv_table import read_table
from fastfgssl.training.hooks import Run, Sink
from fastfgssl.training.saving import fallback_of
from fastfgssl.training.services import Mlflow, WeightsAndBiases

log = logging.getLogger(__name__)
_HELD = 16 << 20  # bytes, at most, that a disk has not taken and that are held for it
_OF_TRAINING = ("epoch", "lr", "backbone_lr", "bias_lr", "images_per_second", "data_wait")


class _Patience:
    """With the disk that a sink writes to: a pause of the run, or none where there is a fallback."""

    def __init__(self, run: Run, path: Path) -> None:
        self._path, self._is_told = path, False
        self.fallback = fallback_of(run.config)
        self._seconds = run.config.train.pause(run.world.size) if self.fallback is None else 0.0

    def takes(self, act: Callable[[], object], *, last: bool = False) -> bool:
        """Whether the disk takes what `act` writes; if not, and without a fallback, raises OSError.

        last: without a pause.
        """
        try:
            persistently(act, f"write {self._path}", 0.0 if last else self._seconds)
        except OSError as error:
            if self.fallback is None:
                raise
            if not self._is_told:
                log.warning("cannot write %s: %s; it is tried with each report", self._path, error.strerror or error)
            self._is_told = True
            return False
        self._is_told = False
        return True

    def closes(self, file: Any) -> bool:
        """Closes a file, and says as `takes` whether the disk has taken all of it."""
        try:
            return self.takes(file.flush, last=True)
        finally:
            with suppress(OSError):
                file.close()


class JsonLines(Sink):
    """metrics.jsonl: an object a report; null stands for a number that is not finite, which JSON does not know.

    What the disk has not taken is also in a file of that name in the fallback, until it has.
    """

    def open(self, run: Run) -> None:
        self._path = run.output / "metrics.jsonl"
        self._patience = _Patience(run, self._path)
        fallback = self._patience.fallback
        self._elsewhere = fallback / self._path.name if fallback else None
        with file_errors("write", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = _lines(self._path)
            if self._elsewhere:
                known = set(map(_step_of, lines))
                lines = sorted([*lines, *(new for new in _lines(self._elsewhere) if _step_of(new) not in known)],
                               key=_step_of)  # fmt: skip
            if lines or self._path.exists():
                kept = "".join(f"{line}\n" for line in lines if _step_of(line) < run.first_moment)
                # not for nothing: the disk may be full, and what is there stay as it is
                if not self._path.exists() or self._path.read_bytes() != kept.encode():
                    write_whole(self._path, lambda file: file.write(kept.encode()))
            self._drop()
            self._file = self._path.open("a", buffering=_HELD)

    def write(self, step: int, logs: dict[str, float]) -> None:
        record = {"step": step} | {name: value if math.isfinite(value) else None for name, value in logs.items()}
        with file_errors("write", self._path):
            if not is_at(self._path, self._file.fileno()):
                log.warning("%s was removed: it begins anew with step %d", self._path, step)
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", buffering=_HELD)
            line = json.dumps(record) + "\n"
            self._file.write(line)
            # what the disk has not taken stays in the buffer
            if self._patience.takes(self._file.flush):
                self._drop()
            elif self._elsewhere:
                self._elsewhere.parent.mkdir(parents=True, exist_ok=True)
                with self._elsewhere.open("a") as file:
                    file.write(line)

    def close(self) -> None:
        with file_errors("write", self._path):
            if self._patience.closes(self._file):
                self._drop()

    def _drop(self) -> None:
        """Removes what is in the fallback: it is in `output` now."""
        if self._elsewhere and self._elsewhere.exists():
            with suppress(OSError):
                self._elsewhere.unlink()
                self._elsewhere.parent.rmdir()


class TensorBoard(Sink):
    """Events in the output folder, written at once: torch's writer loses what it holds back when a run is killed."""

    def open(self, run: Run) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # half a second
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._losses = Event, run.objective.weights
        # readers take files in the order of their names, which a clock that was set back must not change, nor the
        # number of a process that was started in the same second
        with file_errors("read", run.output):
            before = [path.name.split(".")[3] for path in run.output.glob("events.out.tfevents.*")]
        number = max([round(time.time()), *(int(text) + 1 for text in before if text.isdecimal())])
        self._path = run.output / f"events.out.tfevents.{number:010}.{socket.gethostname()}.{os.getpid()}"
        self._patience = _Patience(run, self._path)
        self._writer = RecordWriter
        self._begin(run.first_moment)

    def _begin(self, step: int) -> None:
        with file_errors("write", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=_HELD)
        self._records = self._writer(self._file)
        self._add(file_version="brain.Event:2")
        # makes readers drop what a killed run had from this step on
        self._add(step=step, session_log={"status": "START"})

    def write(self, step: int, logs: dict[str, float]) -> None:
        if not is_at(self._path, self._file.fileno()):  # it was removed
            self._begin(step)
        finite = {name: value for name, value in logs.items() if math.isfinite(value)}
        values = [{"tag": f"{_group(name, self._losses)}/{name}", "simple_value": finite[name]} for name in finite]
        self._add(step=step, summary={"value": values})

    def close(self) -> None:
        with file_errors("write", self._path):
            self._patience.closes(self._records)

    def _add(self, **fields: Any) -> None:
        with file_errors("write", self._path):
            self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
            self._patience.takes(self._records.flush)


class Csv(Sink):
    """metrics.csv: a row a report, a column a number; a number that comes later gets a column of its own."""

    def open(self, run: Run) -> None:
        self._path = run.output / "metrics.csv"
        self._patience = _Patience(run, self._path)
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []
        with file_errors("read", self._path):
            if self._path.exists():
                self._columns, rows = read_table(self._path.read_bytes().decode(errors="replace"))
                self._rows = [row for row in rows if float(row["step"]) < run.first_moment]
        with file_errors("write", self._path):
            self._rewrite()

    def write(self, step: int, logs: dict[str, float]) -> None:
        row = {"step": step} | logs
        new = [name for name in row if name not in self._columns]
        self._rows.append(row)
        self._columns += new
        self._is_behind |= bool(new)
        with file_errors("write", self._path):
            self._patience.takes(lambda: self._rewrite() if self._is_behind else self._append(row))

    def _append(self, row: dict[str, Any]) -> None:
        self._is_behind = True  # until all of the row is there
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self._is_behind = False

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        if self._columns:
            writer.writeheader()
        writer.writerows(self._rows)
        write_whole(self._path, lambda file: file.write(text.getvalue().encode()))
        self._is_behind = False


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


def _group(name: str, losses: Container[str]) -> str:
    """Under which heading TensorBoard shows a number: numbers that differ in their last word stand together."""
    if name == "loss" or name in losses:
        return "loss"
    return "train" if name in _OF_TRAINING else name.rpartition("_")[0] or "train"


def _lines(path: Path) -> list[str]:
    """Of a file; none where there is none."""
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def _step_of(line: str) -> float:
    """The step of a line; infinite for a line that was cut short, or is none of ours."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
