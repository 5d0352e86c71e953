"""The negative cosine of what is predicted and what is there: the loss of SimSiam and, but for a factor, of BYOL."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean over rows of -cos(p_i, z_i): equation 1 of SimSiam (arXiv 2011.10566).

    BYOL (arXiv 2006.07733, equation 2) has 2 + 2 times that, the squared distance of the normalised rows. predictions,
    targets: [N, E], any float dtype. Both have gradients: where the papers stop one, detach it. Rows do not meet: over
    ranks with as many rows each, the means over ranks of value and gradient are those of the whole batch. Returns a
    float32 scalar (float64 for float64 rows). Raises ValueError for other shapes.
    """
    if predictions.ndim != 2 or predictions.shape != targets.shape:
        shapes = f"{list(predictions.shape)} and {list(targets.shape)}"
        raise ValueError(f"predictions, targets: must both be [N, E], got {shapes}")
    with torch.autocast(predictions.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(predictions.dtype, targets.dtype), torch.float32)
        return -functional.cosine_similarity(predictions.to(wide), targets.to(wide), dim=1).mean()
