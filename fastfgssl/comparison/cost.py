"""What a run took: read from the reports that training itself leaves in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fastfgssl.config.schema import Config
from fastfgssl.runtime.environment import forget_peak_memory, peak_memory
from fastfgssl.training.hooks import Hook, Moment, Run
from fastfgssl.training.sinks import read_metrics


class Cost(NamedTuple):
    steps: int
    seconds: float
    """Of the loop: without start, scoring and the last checkpoint; what was made twice after a crash counts once."""
    images_per_second: float
    """Of the global batch, over all of those seconds."""
    peak_memory: int | None
    """Bytes: that torch held on the GPU, or on a CPU the whole process; None for a run that did not report it."""


class PeakMemory(Hook):
    """Adds `peak_memory` to what is reported: the most bytes since training began or went on."""

    def begin(self, run: Run) -> None:
        self._device = run.world.device
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            forget_peak_memory()

    def __call__(self, moment: Moment) -> None:
        if "loss" in moment.logs:
            is_gpu = self._device.type == "cuda"
            moment.logs["peak_memory"] = torch.cuda.max_memory_allocated(self._device) if is_gpu else peak_memory()


def read_cost(config: Config) -> Cost:
    """What the run in `config.output` took.

    A report tells the rate of the steps since the one before it, or since a stopped run went on; steps that none tells,
    between a last report and a stop, count at the rate of the next.
    """
    steps, seconds, peaks = 0, 0.0, []
    for record in read_metrics(Path(config.output)):
        if "images_per_second" in record:
            seconds += (record["step"] - steps) * config.train.batch_size / record["images_per_second"]
            steps = record["step"]
            peaks.append(record.get("peak_memory"))
    known = [int(peak) for peak in peaks if peak is not None]
    return Cost(steps, seconds, steps * config.train.batch_size / seconds, max(known, default=None))


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Of runs of one length with different seeds: means, and the highest peak."""
    images_per_step = costs[0].images_per_second * costs[0].seconds / costs[0].steps
    seconds = sum(cost.seconds for cost in costs) / len(costs)
    known = [cost.peak_memory for cost in costs if cost.peak_memory is not None]
    return Cost(costs[0].steps, seconds, costs[0].steps * images_per_step / seconds, max(known, default=None))
