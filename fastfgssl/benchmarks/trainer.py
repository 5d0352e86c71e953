"""The trainer as suites run it: without its display, and for a trace under torch's profiler.

`torchrun ... -m fastfgssl.benchmarks.trainer CONFIG TRACE` does that on each rank; the first writes the trace.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from fastfgssl.benchmarks.measure import CheckFailed
from fastfgssl.benchmarks.trace import Traces, nvtx_ranges, profiler
from fastfgssl.config.files import load_config
from fastfgssl.config.schema import (
    Config,
    DataConfig,
    DeviceName,
    ModelConfig,
    OptimConfig,
    PrecisionName,
    Schedule,
    TrainConfig,
)
from fastfgssl.data.batch import Batch
from fastfgssl.data.stream import ArchiveStream
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World, start_world
from fastfgssl.training.hooks import Hook, Moment
from fastfgssl.training.sinks import make_sinks
from fastfgssl.training.trainer import fit

TRACED = 3
"""Steps of a training that its trace shows, the last."""
_TRACED_RUN = 8  # steps: pipelines have filled and memory is set up before the trace begins

NETWORK = {
    "cpu": "resnet18 of half width, 64 px, batch 32, float32",
    "cuda": "resnet50, 224 px, batch 200, bfloat16",
    "rehearsal": "resnet18 of an eighth of its width, 32 px, batch 8, float32",
}
_HALF = ModelConfig(backbone="resnet18", weights="none", width=0.5, grids=(8, 4, 2), embedding_dim=256, block_dim=256)
_EIGHTH = ModelConfig(backbone="resnet18", weights="none", width=0.125, grids=(8, 4, 2), embedding_dim=24, block_dim=16)
# network, pixels, batch, precision, device
_RUNS: dict[str, tuple[ModelConfig, int, int, PrecisionName, DeviceName]] = {
    "cpu": (_HALF, 64, 32, "float32", "cpu"),
    "cuda": (ModelConfig(weights="none"), 224, 200, "bfloat16", "cuda"),
    "rehearsal": (_EIGHTH, 32, 8, "float32", "cpu"),
}


def make_config(
    output: Path, archive: Path, scale: str, *, steps: int, log_every: int, schedule: Schedule = "progressive"
) -> Config:
    """The run of `NETWORK[scale]`."""
    model, image_size, batch_size, precision, device = _RUNS[scale]
    return Config(
        output=str(output),
        data=DataConfig(path=str(archive), image_size=image_size),
        model=model,
        train=TrainConfig(
            schedule=schedule,
            batch_size=batch_size,
            steps=steps,
            precision=precision,
            device=device,
            log_every=log_every,
        ),
        optim=OptimConfig(name="sgd", lr=1e-3),
    )


class _Recorder(Hook):
    """In the place of a display: keeps what is reported, shows nothing."""

    def __init__(self, after_step: Callable[[], object]) -> None:
        self.reports: list[dict[str, float]] = []
        self._after_step = after_step

    def __call__(self, moment: Moment) -> None:
        if moment.step:
            self._after_step()
        if moment.logs:
            self.reports.append(moment.logs)


class _Resident(ArchiveStream):
    """The first batch of an archive, over and over."""

    @contextmanager
    def batches(self, start: int, stop: int) -> Iterator[Iterator[Batch]]:
        with super().batches(start, stop) as loader:
            batch = next(loader)
        yield itertools.repeat(batch)


def train(
    config: Config, world: World, *, resident: bool = False, after_step: Callable[[], object] = lambda: None
) -> list[dict[str, float]]:
    """Trains as `pretrain` does and returns what was reported. Raises `CheckFailed` if the losses stand still.

    resident: on the first batch over and over, so that nothing is read or decoded.
    """
    data = (_Resident if resident else ArchiveStream)(config, world)
    torch.manual_seed(config.seed)
    objective = build_objective(config, world)
    data.needs = objective.needs
    recorder = _Recorder(after_step)
    fit(config, world, objective, data, [recorder, *make_sinks(config.train.sinks)])
    losses = [report["loss"] for report in recorder.reports]
    if len(set(losses)) == 1:
        raise CheckFailed(f"{'resident' if resident else 'trained'}: losses {losses}")
    return recorder.reports


def trace_training(name: str, config: Config, world: World, traces: Traces) -> None:
    """Makes the trace of some steps of the run `config`, if traces are wanted, in folders beside its output."""
    if (file := traces.file(name)) is None:
        return
    if world.device.type == "cuda":
        with nvtx_ranges(name):
            train(traced_config(config, "nvtx"), world)
    profile_training(traced_config(config, "traced"), world, file)


def traced_config(config: Config, purpose: str) -> Config:
    """A short run like `config`, which logs every step and so waits for the device in each."""
    short = replace(config.train, steps=_TRACED_RUN, log_every=1)
    return replace(config, output=f"{config.output}-{purpose}", train=short)


def profile_training(config: Config, world: World, file: Path) -> None:
    """Trains, and on the first rank writes the trace of the last `TRACED` steps."""
    if not world.is_main:
        train(config, world)
        return
    steps = config.train.steps
    assert steps is not None, "`traced_config` gives it"
    schedule = torch.profiler.schedule(wait=steps - TRACED - 1, warmup=1, active=TRACED, repeat=1)

    def write(profile: torch.profiler.profile) -> None:
        profile.export_chrome_trace(str(file))

    with profiler(world.device, schedule=schedule, on_trace_ready=write) as started:
        train(config, world, after_step=started.step)


def main() -> None:
    config = load_config(sys.argv[1], [])
    with start_world(config.train.device) as world:
        profile_training(config, world, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
