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

from fastfgssl.batch import Batch
from fastfgssl.benchmarks.archive import open_archive
from fastfgssl.benchmarks.measure import CheckFailed, Record, record_of
from fastfgssl.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from fastfgssl.display import Display
from fastfgssl.distributed import World
from fastfgssl.metrics import read_metrics
from fastfgssl.pretrain import Run
from fastfgssl.signals import StopRequest


class _ResidentRun(Run):
    """The same run on its first batch, over and over."""

    def make_loader(self) -> Iterator[Batch]:
        return itertools.repeat(next(super().make_loader()))


def run(device: torch.device, archive: Path | None = None) -> Iterator[Record]:
    """On a CPU a half-width ResNet-18 at 64 px, on a GPU the paper's network; both on the archive's full images."""
    with tempfile.TemporaryDirectory() as folder, open_archive(archive) as path:
        for schedule in ("progressive", "joint"):
            yield _measure(device, path, schedule, Path(folder))


def _measure(device: torch.device, archive: Path, schedule: str, folder: Path) -> Record:
    on_gpu = device.type == "cuda"
    steps, runs, batch_size = (120, 3, 200) if on_gpu else (60, 3, 32)
    seconds: dict[str, list[float]] = {"ours": [], "baseline": []}
    waits = []
    for turn, (name, kind) in itertools.product(range(runs), (("ours", Run), ("baseline", _ResidentRun))):
        config = Config(
            output=str(folder / f"{schedule}-{name}-{turn}"),
            data=DataConfig(path=str(archive), image_size=224 if on_gpu else 64),
            model=ModelConfig(weights="none")
            if on_gpu
            else ModelConfig(
                backbone="resnet18", weights="none", width=0.5, grids=(8, 4, 2), embedding_dim=256, block_dim=256
            ),
            train=TrainConfig(
                schedule=schedule,
                steps=steps,
                batch_size=batch_size,
                precision="bfloat16" if on_gpu else "float32",
                device=device.type,
                log_every=steps // 3,
            ),
            optim=OptimConfig(name="sgd", lr=1e-3),
        )
        # the first third has the start of the decoders in it
        _, *later = train(kind, config, device)
        seconds[name].append(statistics.fmean(1 / record["images_per_second"] for record in later))
        if name == "ours":
            waits += [record["data_wait"] for record in later]
    network = "resnet50, 224 px, batch 200, bfloat16" if on_gpu else "resnet18 of half width, 64 px, batch 32, float32"
    return record_of(
        "train",
        f"{schedule}, {network}",
        {**seconds, "limit": seconds["baseline"]},
        baseline="one resident batch",
        limit="one resident batch",
        items=1,
        unit="images/s",
        device=device,
        details={"share_of_time_waiting": statistics.median(waits)},
    )


def train(kind: type[Run], config: Config, device: torch.device) -> list[dict]:
    """Trains and returns what was logged. Raises `CheckFailed` for a loss that is not finite, or does not move."""
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=device, group=None, control=None)
    with StopRequest() as stop:
        started = kind(config, world)
        with Display(world, start=0, steps=started.steps) as display:
            started.train(display, stop)
    records = read_metrics(Path(config.output))
    losses = [record["loss"] for record in records]
    if None in losses or len(set(losses)) == 1:
        raise CheckFailed(f"{kind.__name__}: losses {losses}")
    return records
