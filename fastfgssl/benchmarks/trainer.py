"""The trainer as suites run it: without its display, and for a trace under torch's profiler.

`torchrun ... -m fastfgssl.benchmarks.trainer CONFIG TRACE` does that on each rank; the first writes the trace.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from fastfgssl.benchmarks.measure import CheckFailed
from fastfgssl.benchmarks.trace import nvtx_ranges, profiler, trace_file
from fastfgssl.config.files import load_config
from fastfgssl.config.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from fastfgssl.runtime.distributed import World, start_world
from fastfgssl.runtime.signals import StopRequest
from fastfgssl.training.metrics import StepMetrics
from fastfgssl.training.trainer import Run

TRACED = 3
"""Steps of a training that its trace shows, the last."""
_TRACED_RUN = 8  # steps: pipelines have filled and memory is set up before the trace begins

NETWORK = {
    "cpu": "resnet18 of half width, 64 px, batch 32, float32",
    "cuda": "resnet50, 224 px, batch 200, bfloat16",
}
_SMALL = ModelConfig(backbone="resnet18", weights="none", width=0.5, grids=(8, 4, 2), embedding_dim=256, block_dim=256)


def make_config(output: Path, archive: Path, kind: str, *, steps: int, log_every: int, **of_training) -> Config:
    """The run of `NETWORK[kind]`, kind being the type of its device; of_training: further keys of `train`."""
    on_gpu = kind == "cuda"
    train = TrainConfig(
        steps=steps,
        log_every=log_every,
        batch_size=200 if on_gpu else 32,
        precision="bfloat16" if on_gpu else "float32",
        device=kind,
        **of_training,
    )
    return Config(
        output=str(output),
        data=DataConfig(path=str(archive), image_size=224 if on_gpu else 64),
        model=ModelConfig(weights="none") if on_gpu else _SMALL,
        train=train,
        optim=OptimConfig(name="sgd", lr=1e-3),
    )


class _Watcher:
    """In the place of the trainer's display: keeps what is logged, shows nothing."""

    def __init__(self, after_step: Callable[[], object]) -> None:
        self.logged: list[StepMetrics] = []
        self.step_done, self.show = after_step, self.logged.append


def train(
    kind: type[Run], config: Config, world: World, *, after_step: Callable[[], object] = lambda: None
) -> list[StepMetrics]:
    """Trains and returns what was logged. Raises `CheckFailed` if the losses stand still."""
    watcher = _Watcher(after_step)
    kind(config, world).train(watcher, StopRequest())  # a request that is not entered leaves Ctrl-C as it is
    losses = [metrics.loss for metrics in watcher.logged]
    if len(set(losses)) == 1:
        raise CheckFailed(f"{kind.__name__}: losses {losses}")
    return watcher.logged


def trace_training(name: str, config: Config, world: World) -> None:
    """Makes the trace of some steps of the run `config`, if traces are wanted, in folders beside its output."""
    if (file := trace_file(name)) is None:
        return
    if world.device.type == "cuda":
        with nvtx_ranges(name):
            train(Run, traced_config(config, "nvtx"), world)
    profile_training(traced_config(config, "traced"), world, file)


def traced_config(config: Config, purpose: str) -> Config:
    """A short run like `config`, which logs every step and so waits for the device in each."""
    short = replace(config.train, steps=_TRACED_RUN, log_every=1)
    return replace(config, output=f"{config.output}-{purpose}", train=short)


def profile_training(config: Config, world: World, file: Path) -> None:
    """Trains, and on the first rank writes the trace of the last `TRACED` steps."""
    if not world.is_first:
        train(Run, config, world)
        return
    schedule = torch.profiler.schedule(wait=config.train.steps - TRACED - 1, warmup=1, active=TRACED, repeat=1)

    def write(profile: torch.profiler.profile) -> None:
        profile.export_chrome_trace(str(file))

    with profiler(world.device, schedule=schedule, on_trace_ready=write) as started:
        train(Run, config, world, after_step=started.step)


def main() -> None:
    config = load_config(sys.argv[1], [])
    with start_world(config.train.device) as world:
        profile_training(config, world, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
