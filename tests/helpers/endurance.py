"""A long run of tiny steps, and what it holds of the system while it makes them: memory, file descriptors, threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from fastfgssl.config.files import load_config
from fastfgssl.config.schema import Config
from fastfgssl.pretraining import pretrain
from fastfgssl.training.hooks import Hook, Moment

SAMPLES = 40
"""Times that a run is looked at."""
WARM_UP = 0.2
"""Share of its steps after which nothing may grow any more."""

ALLOWED = 0.02
"""Growth, as a share, that is within what an allocator does."""


class Held(NamedTuple):
    """What a process holds."""

    kib: int
    """Resident memory."""
    descriptors: int
    threads: int


class Endurance(NamedTuple):
    """What a run of so many steps held after its warm-up, and the most that it held from then on."""

    steps: int
    first: Held
    most: Held

    @property
    def growth(self) -> float:
        """Of what has grown most, as a share."""
        return max(most / first - 1 for first, most in zip(self.first, self.most, strict=True))

    def __str__(self) -> str:
        first, most = Held(*self.first), Held(*self.most)
        return (
            f"{self.steps:,} tiny steps, a report after each 10th and a checkpoint after each 200th: after the first"
            f" {WARM_UP:.0%} of them {first.kib / 1024:.1f} MiB of resident memory, {first.descriptors} file"
            f" descriptors and {first.threads} threads; from then on at most {most.kib / 1024:.1f} MiB,"
            f" {most.descriptors} and {most.threads}."
        )


class Watch(Hook):
    """Looks at its own process every so many steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[Held] = []

    def __call__(self, moment: Moment) -> None:
        if moment.step:
            self.seen.append(held())


def held() -> Held:
    """What this process holds now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    descriptors = len(list(Path("/proc/self/fd").iterdir())) - 1  # that of the listing
    return Held(int(status["VmRSS"].split()[0]), descriptors, int(status["Threads"]))


def watched(config: Config) -> Endurance:
    """Trains in this process, and says what that held."""
    watch = Watch(max(1, config.train.steps // SAMPLES))
    pretrain(config, hooks=[watch])
    late = watch.seen[round(WARM_UP * len(watch.seen)) - 1 :]
    return Endurance(config.train.steps, late[0], Held(*(max(values) for values in zip(*late, strict=True))))


def tiny_run(archive: Path, output: Path, steps: int) -> Config:
    """Steps of a tiny network, with reports, scalars in TensorBoard and checkpoints now and then."""
    config = load_config("paper", ["model.weights=none", "model.grids=[8,4,2]", "optim.name=sgd", "evaluate.every=0"])
    train = replace(
        config.train, steps=steps, epochs=None, batch_size=4, log_every=10, checkpoint_every=200, precision="float32"
    )
    data = replace(config.data, path=str(archive), image_size=16, threads=1, window=1)
    return replace(
        config, data=data, output=str(output), objective="helpers.tiny_objective", train=replace(train, device="cpu")
    )


def endure(archive: Path, output: Path, steps: int) -> Endurance:
    """What a process of its own holds in that many steps."""
    command = [sys.executable, __file__, str(archive), str(output), str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    first, most = (Held(*map(int, line.split())) for line in done.stdout.splitlines()[-2:])
    return Endurance(steps, first, most)


def main() -> None:
    torch.set_num_threads(1)
    assert threading.active_count() == 1
    archive, output, steps = sys.argv[1:]
    made = watched(tiny_run(Path(archive), Path(output), int(steps)))
    for part in (made.first, made.most):
        print(*part)


if __name__ == "__main__":
    main()
