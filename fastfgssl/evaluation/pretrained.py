"""Networks to score: that of a checkpoint, or one like it with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from fastfgssl.config.files import config_from_values
from fastfgssl.config.schema import Config
from fastfgssl.models import FGSSL, build_model
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import load_checkpoint


class Pretrained(NamedTuple):
    model: FGSSL
    config: Config
    step: int  # training steps that the weights have seen


def load_pretrained(checkpoint: str | Path) -> Pretrained:
    """The network of a checkpoint, with the configuration that it was trained with. `UserError` if it is not one."""
    state = load_checkpoint(Path(checkpoint))
    try:
        config = config_from_values(state["config"])
        model = build_untrained(config, config.seed)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, TypeError, AttributeError):  # torch lists every tensor
        raise UserError(
            f"{checkpoint}: its weights are not those of the network that its configuration names"
        ) from None
    return Pretrained(model, config, state["step"])


def build_untrained(config: Config, seed: int) -> FGSSL:
    """The network of `config` with random weights of its own seed: what a trained one is compared with."""
    torch.manual_seed(seed)
    return build_model(replace(config.model, weights="none"))
