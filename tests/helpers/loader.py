"""A loader of the small archive, and what its batches hold."""

from __future__ import annotations

import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.graph import GraphSpec
from fastfgssl.data.loader import Loader, training_slots
from fastfgssl.data.presets import PRESETS
from fastfgssl.data.quarantine import Quarantine

SEED, BATCH = 5, 12


def spec(**changes) -> GraphSpec:
    values = {
        "batch_size": BATCH,
        "image_size": 32,
        "preset": PRESETS["paper"],
        "grids": (8, 4, 2),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "half": False,
        "sixteen_bit": False,
        "device_id": None,
        "threads": 2,
        "prefetch": 2,
    }
    return GraphSpec(**(values | changes))


def loader(path, *, start=0, stop=9, rank=0, world_size=1, quarantine=None, **changes) -> Loader:
    archive = Archive.open(path)
    slots = training_slots(archive, seed=SEED, window=2, batch_size=BATCH, rank=rank, world_size=world_size)
    changes = {"batch_size": BATCH // world_size} | changes
    quarantine = quarantine or Quarantine(archive.num_samples)
    return Loader(archive, spec(**changes), slots, seed=SEED, quarantine=quarantine, start=start, stop=stop)


def tensors(batch) -> list[torch.Tensor]:
    return [batch.anchor, batch.puzzle_view, *batch.puzzles]
