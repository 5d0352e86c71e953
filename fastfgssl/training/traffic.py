"""What ranks exchange in a step, in bytes: the doctor plans with it, the benchmark holds it against a count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastfgssl.config.schema import Config
from fastfgssl.objectives.base import Update
from fastfgssl.runtime.collectives import Traffic


class StepTraffic(NamedTuple):
    """What each rank hands to collectives in a step."""

    gradients: Traffic
    losses: Traffic
    """Of the updates' losses: embeddings, and sums over them."""


def step_traffic(updates: Sequence[Update], config: Config, rows: int) -> StepTraffic:
    """For `rows` images of each rank. What a synchronised batch norm exchanges, or a report, is left out."""
    accumulate = config.train.accumulate
    is_one_loss = accumulate == 1 or config.loss.cache
    # embeddings leave autocast in its 16 bits, but for the one loss over micro-batches
    is_wide = config.train.precision in ("float32", "tf32") or (is_one_loss and accumulate > 1)
    losses = 1 if is_one_loss else accumulate
    of_updates = [update.traffic(rows // losses, element_size=4 if is_wide else 2) for update in updates]
    gradient = getattr(torch, config.train.gradient_dtype).itemsize
    return StepTraffic(
        gradients=Traffic(summed=gradient * sum(weight.numel() for each in updates for weight in each.parameters())),
        losses=Traffic(*(losses * sum(sizes) for sizes in zip(*of_updates, strict=True))),
    )
