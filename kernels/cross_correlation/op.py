"""The cross-correlation loss of a whole batch: standardises in float32, then takes the cheaper exact algorithm."""

from __future__ import annotations

import torch

from fastfgssl.kernels.cross_correlation.gram import GramLoss
from fastfgssl.kernels.cross_correlation.reference import cross_correlation_loss_reference, standardise

_FORMS = ("barlow", "official")
_ALGORITHMS = ("auto", "direct", "gram")
# rows over features below which two N x N products with their backward cost less than one D x D product with its own
_GRAM_BELOW = 0.75


def cross_correlation_loss(
    z1: torch.Tensor, z2: torch.Tensor, *, lambd: float, form: str = "barlow", algorithm: str = "auto"
) -> torch.Tensor:
    """How far the cross-correlation matrix of two views' embeddings is from the identity.

    z1, z2: [N, D], any float dtype; row i of both belongs to the same image. Computes in float32, or float64 for
    float64 input, also inside autocast: N x N sums overflow float16 from D = 256 on. Returns a scalar of that dtype.
    Raises ValueError naming the argument that does not fit.
    """
    check_arguments(z1, z2, lambd=lambd, form=form, algorithm=algorithm)
    N, D = z1.shape
    if N < 2:
        raise ValueError(f"z1: a batch of {N} row has no cross-correlation; give at least 2")
    if algorithm == "auto":
        algorithm = "gram" if N < _GRAM_BELOW * D else "direct"
    dtype = torch.float64 if z1.dtype == z2.dtype == torch.float64 else torch.float32
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = standardise(z1.to(dtype)), standardise(z2.to(dtype))
        if algorithm == "gram":
            return GramLoss.apply(z1, z2, lambd, form)
        return cross_correlation_loss_reference(z1, z2, lambd=lambd, form=form)


def check_arguments(z1: torch.Tensor, z2: torch.Tensor, *, lambd: float, form: str, algorithm: str) -> None:
    """Raises ValueError naming the first argument that does not fit; needs no communication."""
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"z1, z2: must both be [N, D], got {list(z1.shape)} and {list(z2.shape)}")
    for name, z in (("z1", z1), ("z2", z2)):
        if not z.is_floating_point():
            raise ValueError(f"{name}: must be of a float dtype, got {z.dtype}")
    if not lambd > 0:
        raise ValueError(f"lambd = {lambd}: must be greater than 0")
    if form not in _FORMS:
        raise ValueError(f"form = {form!r}: must be one of {', '.join(_FORMS)}")
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"algorithm = {algorithm!r}: must be one of {', '.join(_ALGORITHMS)}")
