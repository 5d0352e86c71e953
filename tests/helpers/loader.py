"""A loader of the small archive, and what its batches hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.batch import Needs
from fastfgssl.data.decode import GraphSpec
from fastfgssl.data.loader import Loader
from fastfgssl.data.order import Order, Slots
from fastfgssl.data.presets import PRESETS
from fastfgssl.data.quarantine import Quarantine

SEED, BATCH = 5, 12


def spec(**changes) -> GraphSpec:
    values = {
        "batch_size": BATCH,
        "image_size": 32,
        "preset": PRESETS["paper"],
        "needs": Needs(grids=(8, 4, 2)),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "half": False,
        "depth": "8",
        "device_id": None,
        "threads": 2,
        "prefetch": 2,
    }
    if "grids" in changes:  # of all else, everything
        changes["needs"] = Needs(grids=changes.pop("grids"))
    return GraphSpec(**(values | changes))


def loader(
    archive: Archive | Path, *, start=0, stop=9, rank=0, world_size=1, quarantine=None, ids=None, **changes
) -> Loader:
    """ids: of each step, in the place of those of training."""
    archive = archive if isinstance(archive, Archive) else Archive.open(archive)
    order, part = Order(archive.shard_sizes, seed=SEED, window=2), BATCH // world_size

    def slots(step: int) -> Slots:
        if ids is not None:
            return Slots(ids(step), np.zeros_like(ids(step)))
        start = step * BATCH + rank * part
        return order.slots(start, start + part)

    changes = {"batch_size": BATCH // world_size} | changes
    quarantine = quarantine or Quarantine(archive.num_samples)
    return Loader(archive, spec(**changes), slots, seed=SEED, quarantine=quarantine, start=start, stop=stop)


def tensors(batch) -> list[torch.Tensor]:
    return [batch.anchor, batch.puzzle_view, *batch.puzzles]
