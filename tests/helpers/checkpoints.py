"""Checkpoints of networks that were not trained, which is all the same to whoever reads them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

from fastfgssl.config.files import config_to_values
from fastfgssl.config.schema import Config
from fastfgssl.evaluation.batch_statistics import recompute_batch_statistics
from fastfgssl.evaluation.pretrained import build_untrained
from fastfgssl.training.checkpoint import save_checkpoint

CLASSES = ("melanoma [in situ]", "naevus, common", "naïf|keratosis")
CLASSIFIER = {"objective": "supervised.plain", "supervised.classes": list(CLASSES)}
"""Of a configuration whose network has a classifier on its backbone."""


def save_untrained(config: Config, folder: Path, step: int = 1, seed: int = 0, archive: str = "digest") -> Path:
    """A checkpoint of the network of `config`, with batch statistics of noise, which let images be told apart.

    archive: fingerprint of the one that it says it was trained on.
    """
    model, side = build_untrained(config, seed), config.data.image_size
    draws = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.randn(24, config.model.in_channels, size, size, generator=draws) for size in (2, side))
    images = functional.interpolate(coarse, (side, side), mode="bilinear") + fine / 2
    recompute_batch_statistics(model, [images])
    state = {"model": model.state_dict(), "objective": {}, "optimizer": {}, "scaler": {}, "archive": archive}
    return save_checkpoint(folder, state | {"step": step, "config": config_to_values(config)}, keep=2)
