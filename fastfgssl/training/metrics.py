"""What a run reports at a logged step, and where it is kept: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.tensorboard import SummaryWriter

from fastfgssl.config.schema import Stage


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    step: int
    """Steps done, this one included."""
    epoch: float
    """Passes over the archive done."""
    loss: float
    """Sum of the heads' losses, weighted."""
    losses: dict[Stage, float]
    """Loss of each trained head, not weighted."""
    terms: dict[Stage, dict[str, float]]
    """What each head's loss consists of, dead dimensions, and the effective rank of its embeddings (updates.TERMS)."""
    lr: float
    """Learning rate of the heads' weights."""
    backbone_lr: float
    """Learning rate of the backbone's weights."""
    images_per_second: float
    """Source images over all ranks since the last logged step; each is seen as several views."""
    data_wait: float
    """Share of the time since the last logged step that was spent waiting for a batch."""

    def as_record(self) -> dict[str, Any]:
        """The object that metrics.jsonl holds; None stands for a number that is not finite, which JSON has not."""
        record = {name: value for name, value in vars(self).items() if name not in ("losses", "terms")}
        record |= {f"loss_{head}": loss for head, loss in self.losses.items()}
        record |= {f"{name}_{head}": value for head, terms in self.terms.items() for name, value in terms.items()}
        return {name: value if math.isfinite(value) else None for name, value in record.items()}


class MetricsLog:
    """Appends to metrics.jsonl and to TensorBoard events in `folder`.

    start: steps that are done already. What was logged beyond them, by a run that ended without a checkpoint, is
    dropped: those steps are made and logged again.
    """

    def __init__(self, folder: Path, start: int) -> None:
        path = folder / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(errors="replace").splitlines() if _step_of(line) <= start]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in kept))
            partial.replace(path)
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, metrics: StepMetrics) -> None:
        record = metrics.as_record()
        self._file.write(json.dumps(record) + "\n")
        of_terms = {f"{name}_{head}": name for head, terms in metrics.terms.items() for name in terms}
        for name, value in record.items():
            if name != "step" and value is not None:
                group = "loss" if name.startswith("loss") else of_terms.get(name, "train")
                self._board.add_scalar(f"{group}/{name}", value, metrics.step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class Lap(NamedTuple):
    steps: int
    seconds: float
    waited: float  # seconds


class Clock:
    """Measures the time between two logged steps, and how much of it was spent waiting for batches."""

    def __init__(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def lap(self, step: int) -> Lap:
        """Steps, seconds, and seconds of waiting since the last lap."""
        now = time.perf_counter()
        lap = Lap(step - self._step, now - self._start, self._waited)
        self._step, self._start, self._waited = step, now, 0.0
        return lap


class DataWaitWatch:
    """Notices a run that keeps waiting for data, from the share of time that it waited in each logged interval.

    It speaks up when `intervals` in a row were above `most`, and at most once in `quiet` seconds. The first interval is
    left out: there the pipelines fill. config: the file of the run's configuration, which the warning names.
    """

    def __init__(
        self,
        config: Path,
        *,
        most: float = 0.05,
        intervals: int = 3,
        quiet: float = 3600.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._most, self._intervals, self._quiet, self._now = config, most, intervals, quiet, now
        self._above: list[float] | None = None  # shares in a row; None before the first interval
        self._spoke = -math.inf

    def look(self, data_wait: float) -> str | None:
        """Takes the next interval's share; returns the warning if it is time for one."""
        if self._above is None:
            self._above = []
            return None
        self._above = [*self._above, data_wait][-self._intervals :] if data_wait > self._most else []
        if len(self._above) < self._intervals or self._now() - self._spoke < self._quiet:
            return None
        self._spoke = self._now()
        share = sum(self._above) / len(self._above)
        return (
            f"{share:.0%} of the time of the last {self._intervals} logged intervals went into waiting for data;"
            f" to see what holds it back: python tools/doctor.py --config {shlex.quote(str(self._config))}"
        )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, in the order of steps."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _step_of(line: str) -> float:
    """The step of a line; infinite for a line that was cut short, or is none of ours."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return float("inf")
