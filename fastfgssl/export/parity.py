"""Whether a written file computes what the network does: batches of several sizes through both, value by value."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfgssl.export.base import Format, Part, Run, in_a_line
from fastfgssl.runtime.errors import UserError

BATCHES = (1, 2, 7)
ROUNDING = 1e-4
"""Difference that rounding may make, of an output's largest value. Float32 through a ResNet-152 makes 1e-5; a bias of
another layer, or a batch norm in training mode, 1e-1."""


def largest_difference(part: Part, run: Run, format: Format) -> float:
    """The largest difference between `run` and `part` over `BATCHES`, as a share of an output's largest value.

    Raises `UserError` if it is more than rounding, if outputs or their shapes differ, or if a batch size is refused.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in BATCHES:
        images = torch.randn(batch, *part.image_shape, generator=generator)
        with torch.inference_mode():
            ours = part(images)
            try:
                theirs = run(images)
            except Exception as error:  # each library has its own
                raise _refused(format, f"it fails on a batch of {batch}: {in_a_line(error)}") from None
        if list(theirs) != list(ours):
            raise _refused(format, f"it gives {', '.join(theirs)}, not {', '.join(ours)}")
        for name, values in ours.items():
            largest = max(largest, _difference(values, theirs[name], f"{name} of a batch of {batch}", format))
    return largest


def _difference(ours: Tensor, theirs: Tensor, what: str, format: Format) -> float:
    if not ours.isfinite().all():
        raise UserError(f"the network's {what} holds NaN or infinite values; take a checkpoint from before them")
    if ours.shape != theirs.shape:
        raise _refused(format, f"{what} has the shape {list(theirs.shape)}, not {list(ours.shape)}")
    difference = (ours.double() - theirs.double()).abs().max().item()
    scale = ours.abs().max().item()
    if not difference <= ROUNDING * scale:  # NaN is not
        raise _refused(
            format, f"{what} differs by up to {difference:.3g}, where values reach {scale:.3g}: more than rounding"
        )
    return difference / scale if scale else 0.0


def _refused(format: Format, why: str) -> UserError:
    return UserError(
        f"--format {format.name}: what {format.library} makes of the file is not what the network gives, so it was"
        f" removed: {why}; take another format, or another version"
    )
