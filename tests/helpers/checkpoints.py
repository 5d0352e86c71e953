"""Checkpoints of networks that were not trained, which is all the same to whoever reads them."""

from __future__ import annotations

from pathlib import Path

import torch

from fastfgssl.config.files import config_to_values
from fastfgssl.config.schema import Config
from fastfgssl.evaluation.pretrained import build_untrained
from fastfgssl.training.checkpoint import save_checkpoint


def save_untrained(config: Config, folder: Path, step: int = 1, seed: int = 0) -> Path:
    """A checkpoint of the network of `config`, with batch statistics that evaluation mode shows."""
    model = build_untrained(config, seed)
    for norm in model.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(norm.running_mean)
    state = {"model": model.state_dict(), "objective": {}, "optimizer": {}, "scaler": {}, "archive": "digest"}
    return save_checkpoint(folder, state | {"step": step, "config": config_to_values(config)}, keep=2)
