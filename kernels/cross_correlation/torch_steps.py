"""The steps over columns of the cross-correlation loss in plain PyTorch: any device, float32 or float64.

`triton_kernel.py` has the same functions for GPUs; `op.py` calls one of the two. N rows of the whole batch, n rows of
this rank, D features.

What PyTorch does slowly on a CPU is avoided: `var_mean` and `vector_norm` along rows take 15 to 30 times as long as
`mean` and `vecdot`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastfgssl.kernels.cross_correlation.reference import STANDARDISE_EPS


@dataclass(kw_only=True)
class View:
    """One view's embeddings of the whole batch, each column standardised."""

    z_ND: torch.Tensor
    """Less the column's mean, over its standard deviation."""
    rstd_D: torch.Tensor
    """1 / standard deviation: (variance + eps)^(-1/2)."""


def standardise(x_ND: torch.Tensor, precision: torch.dtype) -> View:
    """Standardises in float32, or float64 if that is `precision`; products round to it themselves."""
    x_ND = x_ND.to(torch.promote_types(precision, torch.float32))
    z_ND = x_ND - x_ND.mean(dim=0)
    z_ND -= z_ND.mean(dim=0)  # the first mean was rounded, which the gradient of a column far from zero would show
    rstd_D = (torch.linalg.vecdot(z_ND, z_ND, dim=0) / len(z_ND) + STANDARDISE_EPS).rsqrt()
    return View(z_ND=z_ND.mul_(rstd_D), rstd_D=rstd_D)


def release(view: View) -> None:
    """Says that no product needs the view any more; `contract` and `finish` here still do."""


def compare_columns(
    view1: View, view2: View, *, on_weight: float, off_weight: float, diagonal_in_product: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The diagonal of C and what follows from it.

    Returns slope [D], the factor of the other view's columns in the gradient (less what the matrix product holds of
    the diagonal already), and totals [5]: sum (1 - C_ii)^2, sum C_ii^2, the variance of the standardised columns added
    up for both views, and how many columns are dead, with a variance below the eps, in either.
    """
    N = len(view1.z_ND)
    diagonal_D = torch.linalg.vecdot(view1.z_ND, view2.z_ND, dim=0) / N
    slope_D = (-2 * on_weight / N) * (1 - diagonal_D)
    if diagonal_in_product:
        slope_D -= (2 * off_weight / N) * diagonal_D
    # eps over (variance + eps): 0 for a live column, 1 for a constant one
    lost = [STANDARDISE_EPS * view.rstd_D.square() for view in (view1, view2)]
    dead = (torch.maximum(*lost) > 0.5).sum()
    totals = [(1 - diagonal_D).square().sum(), diagonal_D.square().sum(), *((1 - share).sum() for share in lost), dead]
    return slope_D, torch.stack([total.to(slope_D.dtype) for total in totals])


def inner_product_and_shift(
    k1_nN: torch.Tensor, k2_nN: torch.Tensor, shifts: torch.Tensor, first: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """<K1, K2> of this rank's rows, from row `first` on, and both less shift (I - 11'/N), rounded to `dtype`."""
    inner = (k1_nN * k2_nN).sum()
    for k_nN, shift in zip((k1_nN, k2_nN), shifts, strict=True):
        k_nN += shift / k_nN.shape[1]
        k_nN.diagonal(first).sub_(shift)
    return inner, k1_nN.to(dtype), k2_nN.to(dtype)


def contract(
    product_nD: torch.Tensor,
    own: View,
    other: View,
    slope_D: torch.Tensor,
    *,
    scale: float,
    shift: torch.Tensor | None,
    rows: slice,
) -> torch.Tensor:
    """Completes the gradient for standardised rows, g = scale (product + shift z) + slope z', in place of `product`.

    Returns [2, D]: the sums of g and of g z over these rows, which the standardisation's backward needs of all rows.
    """
    z_nD = own.z_ND[rows]
    product_nD *= scale
    product_nD.addcmul_(other.z_ND[rows], slope_D)
    if shift is not None:
        product_nD.addcmul_(z_nD, scale * shift)
    return torch.stack([product_nD.sum(dim=0), torch.linalg.vecdot(product_nD, z_nD, dim=0)])


def finish(gradient_nD: torch.Tensor, own: View, *, rows: slice, sums: torch.Tensor, factor: float) -> torch.Tensor:
    """Back through the standardisation, in place of what `contract` left: factor rstd (g - mean(g) - z mean(g z)).

    sums: what `contract` returned, of all rows of the batch.
    """
    mean_D, mean_gz_D = sums / len(own.z_ND)
    gradient_nD.addcmul_(own.z_ND[rows], mean_gz_D, value=-1)
    gradient_nD -= mean_D
    gradient_nD *= factor * own.rstd_D
    return gradient_nD
