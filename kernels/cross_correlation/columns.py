"""The steps over columns of the cross-correlation loss in plain PyTorch: any device, float32 or float64.

`columns_triton.py` has the same functions for GPUs; `algorithm.py` calls one of the two. N rows of the whole batch, n
rows of this rank, D features.

What PyTorch does slowly on a CPU is avoided: `var_mean` and `vector_norm` along rows take 15 to 30 times as long as
`mean` and `vecdot`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastfgssl.kernels.cross_correlation.reference import STANDARDISE_EPS

NUM_SHARES = 1
"""In how many parts the squared norm of C is added up."""


@dataclass(kw_only=True)
class Standardised:
    """Both views' embeddings of the whole batch, each column standardised, and what follows from columns alone."""

    views: list[torch.Tensor]
    """z1_ND and z2_ND for the products, which take them out of the list."""
    z_ND: tuple[torch.Tensor, torch.Tensor]
    """The same, for the way back."""
    rstd_D: tuple[torch.Tensor, torch.Tensor]
    """1 / standard deviation of each view's columns: (variance + eps)^(-1/2)."""
    slope_D: torch.Tensor
    """The factor of the other view's columns in the gradient, less what the matrix product holds of the diagonal."""
    totals: torch.Tensor
    """[5]: sum (1 - C_ii)^2; sum C_ii^2; shift_1 and shift_2, tr(K) / (N - 1) of each view's Gram matrix; and how many
    columns are dead, with a variance below the eps, in either view."""


def standardise(
    x1_ND: torch.Tensor,
    x2_ND: torch.Tensor,
    precision: torch.dtype,
    *,
    on_weight: float,
    off_weight: float,
    diagonal_in_product: bool,
) -> Standardised:
    """Standardises both views in float32, or float64 if that is `precision`, and compares them column by column.

    diagonal_in_product: whether the matrix products of the gradient will have the diagonal of C.
    """
    (z1_ND, rstd1_D), (z2_ND, rstd2_D) = (_standardise_view(x_ND, precision) for x_ND in (x1_ND, x2_ND))
    N = len(z1_ND)
    diagonal_D = torch.linalg.vecdot(z1_ND, z2_ND, dim=0) / N
    slope_D = (-2 * on_weight / N) * (1 - diagonal_D)
    if diagonal_in_product:
        slope_D -= (2 * off_weight / N) * diagonal_D
    # eps over (variance + eps): 0 for a live column, 1 for a constant one
    lost = [STANDARDISE_EPS * rstd_D.square() for rstd_D in (rstd1_D, rstd2_D)]
    shifts = [(1 - share).sum() * (N / (N - 1)) for share in lost]
    dead = (torch.maximum(*lost) > 0.5).sum()
    totals = [(1 - diagonal_D).square().sum(), diagonal_D.square().sum(), *shifts, dead]
    return Standardised(
        views=[z1_ND, z2_ND],
        z_ND=(z1_ND, z2_ND),
        rstd_D=(rstd1_D, rstd2_D),
        slope_D=slope_D,
        totals=torch.stack([total.to(slope_D.dtype) for total in totals]),
    )


def inner_product_and_shift(
    k1_nN: torch.Tensor, k2_nN: torch.Tensor, shifts: torch.Tensor, first_row: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """<K1, K2> / N^2 in parts that add up to it, and both less shift (I - 11'/N), rounded to `dtype`.

    K1, K2: this rank's rows of the Gram matrices, from row `first_row` on.
    """
    N = k1_nN.shape[1]
    inner = (k1_nN * k2_nN).sum() / N**2
    for k_nN, shift in zip((k1_nN, k2_nN), shifts, strict=True):
        k_nN += shift / N
        k_nN.diagonal(first_row).sub_(shift)
    return inner[None], k1_nN.to(dtype), k2_nN.to(dtype)


def drop_diagonal(m_sD: torch.Tensor, start: int, dtype: torch.dtype, squared_norm: torch.Tensor) -> torch.Tensor:
    """A slab of N C, from row `start` on, with zeros for the diagonal of C, rounded to `dtype`.

    Adds its squares to squared_norm [NUM_SHARES].
    """
    m_sD.diagonal(start).zero_()
    squared_norm += m_sD.square().sum()
    return m_sD.to(dtype)


def contract(
    squared_norm: torch.Tensor,
    toward: tuple[torch.Tensor, torch.Tensor],
    standardised: Standardised,
    *,
    scale: float,
    shifted: bool,
    rows: slice,
) -> torch.Tensor:
    """Completes the gradients for standardised rows, g = scale (product + shift z) + slope z', in place of `toward`.

    squared_norm: of C, in parts that add up to it. shifted: whether the other view's shift was taken out of a product.
    Returns [1 + 4 D], what ranks add up: the squared norm, then for each view the sums of g and of g z over these rows,
    which the standardisation's backward needs of all rows.
    """
    z_nD = [z_ND[rows] for z_ND in standardised.z_ND]
    shifts = standardised.totals[2:4]
    shared = [squared_norm]
    for product_nD, own_nD, other_nD, shift in zip(toward, z_nD, z_nD[::-1], shifts.flip(0), strict=True):
        product_nD *= scale
        product_nD.addcmul_(other_nD, standardised.slope_D)
        if shifted:
            product_nD.addcmul_(own_nD, scale * shift)
        shared += [product_nD.sum(dim=0), torch.linalg.vecdot(product_nD, own_nD, dim=0)]
    return torch.cat(shared)


def finish(
    toward: tuple[torch.Tensor, torch.Tensor],
    standardised: Standardised,
    sums: torch.Tensor,
    *,
    factor: float,
    rows: slice,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Back through the standardisation, in place of what `contract` left: factor rstd (g - mean(g) - z mean(g z)).

    sums: [4 D], what `contract` returned after the squared norm, of all rows of the batch.
    """
    N, D = standardised.z_ND[0].shape
    means_22D = sums.view(2, 2, D) / N
    for gradient_nD, z_ND, rstd_D, means in zip(toward, standardised.z_ND, standardised.rstd_D, means_22D, strict=True):
        mean_D, mean_gz_D = means
        gradient_nD.addcmul_(z_ND[rows], mean_gz_D, value=-1)
        gradient_nD -= mean_D
        gradient_nD *= factor * rstd_D
    return toward


def loss_and_terms(
    squared_norm: torch.Tensor,
    standardised: Standardised,
    *,
    on_weight: float,
    off_weight: float,
    diagonal_in_product: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and [3]: sum (1 - C_ii)^2, sum_(i != j) C_ij^2, and how many columns are dead.

    squared_norm: [1], of C, without its diagonal unless that is in the product.
    """
    on_diagonal, off_diagonal = standardised.totals[0], squared_norm[0]
    if diagonal_in_product:
        # where there is nothing else, rounding leaves a difference below 0; a NaN stays one
        off_diagonal = (off_diagonal - standardised.totals[1]).clamp_min(0)
    loss = on_weight * on_diagonal + off_weight * off_diagonal
    return loss, torch.stack([on_diagonal, off_diagonal, standardised.totals[4]])


def _standardise_view(x_ND: torch.Tensor, precision: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x_ND = x_ND.to(torch.promote_types(precision, torch.float32))
    z_ND = x_ND - x_ND.mean(dim=0)
    z_ND -= z_ND.mean(dim=0)  # the first mean was rounded, which the gradient of a column far from zero would show
    rstd_D = (torch.linalg.vecdot(z_ND, z_ND, dim=0) / len(z_ND) + STANDARDISE_EPS).rsqrt()
    return z_ND.mul_(rstd_D), rstd_D
