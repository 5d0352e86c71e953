"""VICReg (arXiv 2105.04906): embeddings of two views agree, their features vary, and are uncorrelated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastfgssl.loss.whole_batch import whole_batch

_EPSILON = 1e-4  # added to variances before their root


class VICRegTerms(NamedTuple):
    """The loss of the whole batch and what it consists of; scalars, alike on every rank, all with derivatives."""

    loss: Tensor
    """float32 (float64 for float64 embeddings)."""
    invariance: Tensor
    """Mean over images and features of (z - z')^2."""
    variance: Tensor
    """Mean over features of what a standard deviation lacks of 1, added over the views."""
    covariance: Tensor
    """sum_(i != j) C_ij^2 / D, C the covariance matrix of the features, added over the views."""


def vicreg_terms(
    z1: Tensor, z2: Tensor, *, weights: Sequence[float] = (25.0, 25.0, 1.0), group: ProcessGroup | None = None
) -> VICRegTerms:
    """VICReg's loss, equations 1 to 6; the invariance is a mean over features too, as in the paper's algorithm 1.

    z1, z2: embeddings [N, D] of two views, any float dtype, row i of both of the same image. weights: of invariance,
    variance and covariance; the published code halves the variance that the paper has. group: with a process group,
    z1 and z2 are this rank's rows, as many on every rank; value and gradient as for `cross_correlation_loss`. Raises
    ValueError for other shapes, or fewer than two rows.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = whole_batch(z1, z2, group)
        invariance = (z1 - z2).square().mean()
        (lacking_1, covariance_1), (lacking_2, covariance_2) = _of_view(z1), _of_view(z2)
        variance, covariance = lacking_1 + lacking_2, covariance_1 + covariance_2
        of_invariance, of_variance, of_covariance = weights
        loss = of_invariance * invariance + of_variance * variance + of_covariance * covariance
    return VICRegTerms(loss, invariance, variance, covariance)


def _of_view(z: Tensor) -> tuple[Tensor, Tensor]:
    """What one view adds to the variance and to the covariance."""
    rows, dim = z.shape
    z = z - z.mean(dim=0)
    variances = z.square().sum(dim=0) / (rows - 1)
    lacking = (1 - (variances + _EPSILON).sqrt()).clamp(min=0).mean()
    # ZZ' and Z'Z have the same sum of squares; the smaller one is made
    products = z @ z.T if rows < dim else z.T @ z
    all_squares = products.square().sum() / (rows - 1) ** 2
    return lacking, (all_squares - variances.square().sum()) / dim
