"""Suite `train`: the real trainer from an archive, against the same trainer fed with one resident batch.

The ratio is what the input path costs: 1 where training waits for nothing and shares no core with the decoders.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from fastfgssl.benchmarks.archive import open_archive
from fastfgssl.benchmarks.measure import Record, Settings, Suite
from fastfgssl.benchmarks.trainer import NETWORK, make_config, trace_training, train
from fastfgssl.config.schema import Schedule
from fastfgssl.runtime.distributed import World

TURNS, STEPS, LAP = (
    {"cpu": 3, "cuda": 1, "rehearsal": 1},
    {"cpu": 100, "cuda": 25, "rehearsal": 4},
    {"cpu": 20, "cuda": 5, "rehearsal": 2},
)
"""Trainings of each kind, their steps, and the steps that are timed together."""


def run(settings: Settings) -> Iterator[Record]:
    """On a CPU a half-width ResNet-18 at 64 px, on a GPU the paper's network; both on the archive's full images."""
    suite = Suite("train", settings)
    with tempfile.TemporaryDirectory() as folder, open_archive(settings.archive) as path:
        for schedule in ("progressive", "joint"):
            yield _measure(suite, path, schedule, Path(folder))


def _measure(suite: Suite, archive: Path, schedule: Schedule, folder: Path) -> Record:
    """Pairs each lap with the same lap of the resident run of the same turn."""
    device = suite.device
    world, case = World.alone(device), f"{schedule}, {NETWORK[suite.scale]}"
    seconds: dict[str, list[float]] = {"ours": [], "baseline": []}
    waits, peaks = [], []
    turns, steps, lap = (numbers[suite.scale] for numbers in (TURNS, STEPS, LAP))
    for turn, name in itertools.product(range(turns), ("ours", "baseline")):
        output = folder / f"{schedule}-{name}-{turn}"
        config = make_config(output, archive, suite.scale, steps=steps, log_every=lap, schedule=schedule)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        # the first lap has the start of the decoders in it
        _, *later = train(config, world, resident=name == "baseline")
        seconds[name] += [1 / report["images_per_second"] for report in later]
        if name == "ours":
            waits += [report["data_wait"] for report in later]
            peaks += [torch.cuda.max_memory_allocated(device)] if device.type == "cuda" else []
    trace_training(f"train: {case}", config, world, suite.settings.traces)
    return suite.record(
        case,
        {**seconds, "limit": seconds["baseline"]},
        baseline="one resident batch",
        limit="one resident batch",
        unit="images/s",
        details={
            "share_of_time_waiting": statistics.median(waits),
            **({"peak_memory_of_torch": max(peaks)} if peaks else {}),
            "trainings": turns,
            "steps_of_a_lap": lap,
        },
    )
