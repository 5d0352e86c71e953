"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from torch.optim import Optimizer


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int, final: float) -> float:
    """Share of the peak learning rate at a step: linear over `warmup_steps`, then half a cosine down to `final`.

    Step 0 has 1 / warmup_steps of the peak; step `steps` would have `final`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Gives every group `factor` times its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The rates of all groups that train something: `lr`, and beside it those of parts that have one of their own.

    `lr` is of the heads' weights, or where there are none of what there is; `backbone_lr` of the backbone's weights;
    `bias_lr` of biases and norms, unless they follow their part.
    """
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups if group["params"]}
    lr = rates.get("heads_weights", next(iter(rates.values())))
    reported = {"lr": lr}
    if "backbone_weights" in rates:
        reported["backbone_lr"] = rates["backbone_weights"]
    for part in ("heads", "backbone"):
        rate = rates.get(f"{part}_bias_and_norm", lr)
        if rate != rates.get(f"{part}_weights", lr):
            reported["bias_lr"] = rate
    return reported
