"""What a run has cost, over all its starts: from provenance.json, and from the reports of those that were killed."""

from __future__ import annotations

import itertools
import json
import logging
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from fastfgssl.runtime.files import write_whole
from fastfgssl.training.hooks import Hook, Moment, Run, spared

log = logging.getLogger(__name__)


class Cost(NamedTuple):
    """Times in seconds."""

    steps: int
    starts: int
    steps_made_twice: int
    training: float
    """Time of steps, their wait for data included."""
    waiting: float
    """Of that, for data."""
    wall: float
    """From the first start to the last end, whatever lay between."""
    ettr: float
    """Share of `wall` in which steps were made that counted: not twice, and not waiting."""


def cost_of(starts: list[dict[str, Any]]) -> Cost:
    """Of the starts in a provenance.json, each with what `CostOfRun` has added; a start without counts for nothing."""
    ended = [start for start in starts if "seconds" in start]
    twice = sum(max(0, now["last_step"] - after["step"]) for now, after in itertools.pairwise(ended))
    made = sum(start["last_step"] - start["step"] for start in ended)
    training = sum(start["seconds"] for start in ended)
    waiting = sum(start["seconds_waiting"] for start in ended)
    # not less than what the starts took: between two of them the machine's clock may have been put back
    took = sum(start["end"] - start["begin"] for start in ended)
    wall = max(took, ended[-1]["end"] - ended[0]["begin"]) if ended else 0.0
    counted = (training - waiting) * (1 - twice / made) if made else 0.0
    share = counted / wall if wall > 0 else 0.0
    return Cost(ended[-1]["last_step"] if ended else 0, len(starts), twice, training, waiting, wall, share)


class CostOfRun(Hook):
    """Adds to the last start in provenance.json what it took, and says at the end what all of them did.

    Of a start that was killed it takes what metrics.jsonl knows: before sinks drop what is made again.
    """

    def begin(self, run: Run) -> None:
        self._run, self._last, self._seconds, self._waiting = run, run.start, 0.0, 0.0
        self._since: float | None = None  # when steps began that are not reported yet
        self._reported, self._begin, self._clock = run.start, time.time(), time.monotonic()
        self._history = run.output / "provenance.json"
        if not run.world.is_main or run.is_new:
            return
        starts = read_starts(self._history)
        metrics = run.output / "metrics.jsonl"
        if starts and "seconds" not in starts[-1] and metrics.exists():
            starts[-1] |= _from_reports(starts[-1], metrics, run.config.train.batch_size)
            self._write(starts)

    def __call__(self, moment: Moment) -> None:
        self._last = moment.step
        if self._since is None:
            self._since = time.monotonic()
        if moment.step > self._reported and "images_per_second" in moment.logs:
            images = (moment.step - self._reported) * self._run.config.train.batch_size
            seconds = images / moment.logs["images_per_second"]
            self._seconds += seconds
            self._waiting += seconds * moment.logs["data_wait"]
            self._reported, self._since = moment.step, time.monotonic()

    def end(self) -> None:
        if not hasattr(self, "_run") or not self._run.world.is_main:
            return
        starts = read_starts(self._history)
        if not starts:
            return
        if self._last > self._reported and self._since is not None:
            self._seconds += time.monotonic() - self._since
        starts[-1] |= {
            "begin": self._begin,
            "end": self._begin + time.monotonic() - self._clock,
            "last_step": self._last,
            "seconds": round(self._seconds, 3),
            "seconds_waiting": round(self._waiting, 3),
        }
        cost = cost_of(starts)
        starts[-1]["cost"] = cost._asdict()
        self._write(starts)
        log.info("%s", describe(cost, quarantined(self._run.output)))

    def _write(self, starts: list[dict[str, Any]]) -> None:
        with spared(self._history):
            write_whole(self._history, lambda file: file.write((json.dumps(starts, indent=1) + "\n").encode()))


def describe(cost: Cost, quarantined: int) -> str:
    """In a line."""
    starts = "1 start" if cost.starts == 1 else f"{cost.starts} starts"
    wait = cost.waiting / cost.training if cost.training else 0.0
    return (
        f"cost: {cost.steps} steps in {starts}, {cost.steps_made_twice} made twice; {wait:.0%} of the time of steps was"
        f" waiting for data; {quarantined} images in quarantine; {cost.ettr:.1%} of {cost.wall:.0f} s was training"
    )


def quarantined(output: Path) -> int:
    """Samples in a run's quarantine.csv."""
    path = output / "quarantine.csv"
    return max(0, len(path.read_text(errors="replace").splitlines()) - 1) if path.exists() else 0


def read_starts(history: Path) -> list[Any]:
    """The list in a provenance.json; empty where there is none: a record is not worth a run."""
    try:
        starts = json.loads(history.read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(starts, list):
        return []
    return [start for start in starts if isinstance(start, dict) and "step" in start]


def _from_reports(start: dict[str, Any], metrics: Path, batch_size: int) -> dict[str, Any]:
    """What a start that did not come to its end is known to have done: up to its last report."""
    last, seconds, waiting = start["step"], 0.0, 0.0
    for line in metrics.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            step, rate, wait = record["step"], record["images_per_second"], record["data_wait"]
        except (ValueError, KeyError, TypeError):  # cut short, or of scores alone
            continue
        if step > last and rate:
            lap = (step - last) * batch_size / rate
            last, seconds, waiting = step, seconds + lap, waiting + lap * (wait or 0)
    begin = datetime.strptime(start["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    end = max(metrics.stat().st_mtime, begin + seconds)  # of a clock that may have been put back
    return {"begin": begin, "end": end, "last_step": last, "seconds": seconds, "seconds_waiting": waiting}
