"""The matrix products of the cross-correlation loss: through two N x N Gram matrices, or through slabs of C.

Both give sum C_ij^2 and, for this rank's n rows, N Z2 C' and N Z1 C, from which `algorithm.py` makes the gradients:
    gram      K1 = Z1 Z1', K2 = Z2 Z2':   ||C||_F^2 = <K1, K2> / N^2,   N Z2 C' = K2 Z1,   N Z1 C = K1 Z2
    direct    M = Z1' Z2 = N C, a slab of its rows at a time, which is dropped after its use; no D x D tensor
N rows of the whole batch, D features.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch

# a slab's rows: enough for products to run at their full rate, few enough for it to stay in a GPU's second-level cache
_SLAB = {"cpu": 512, "cuda": 1024}
_GRAM_BLOCKS = 4  # of rows on a CPU: the half below their diagonal is copied, not computed


class Products(NamedTuple):
    squared_norm: torch.Tensor
    """Sum of C_ij^2: this rank's share of it, in parts that add up to it."""
    toward: tuple[torch.Tensor, torch.Tensor] | None
    """N Z2 C' and N Z1 C: this rank's rows [n, D]."""
    shifted: bool = False
    """Whether they are less shift_2 Z1 and shift_1 Z2."""


def product(a: torch.Tensor, b: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    """a @ b of numbers rounded to `precision`, added up in float32 or better."""
    if a.dtype == b.dtype == precision and precision != torch.bfloat16:
        return a @ b
    a, b = a.to(precision), b.to(precision)
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def through_grams(
    views: list[torch.Tensor],
    shifts: torch.Tensor,
    *,
    rows: slice,
    precision: torch.dtype,
    with_gradients: bool,
    columns: ModuleType,
) -> Products:
    """By the Gram matrices' rows of this rank; the diagonal of C is part of the products.

    K2 Z1 is mostly a multiple of Z1, which the standardisation's backward takes away again, so where products round,
    that part is taken out of K2 before: shift (I - 11'/N), with the shift that leaves the trace at zero. shifts: [2],
    of K1 and K2. views: Z1 and Z2, which are taken out of the list.
    """
    z1_ND, z2_ND = views
    views.clear()
    N = len(z1_ND)
    k1_nN, k2_nN = (_gram_rows(z_ND, rows, precision) for z_ND in (z1_ND, z2_ND))
    rounds = z1_ND.is_cuda or precision == torch.bfloat16
    if rounds:
        squared_norm, k1_nN, k2_nN = columns.inner_product_and_shift(k1_nN, k2_nN, shifts, rows.start, precision)
    else:
        # pairwise: `vdot` adds millions of numbers one by one
        squared_norm = ((k1_nN * k2_nN).sum() / N**2)[None]
    if not with_gradients:
        return Products(squared_norm, None)
    toward_1_nD = product(k2_nN, z1_ND, precision)
    del z1_ND  # the next product may take its memory
    return Products(squared_norm, (toward_1_nD, product(k1_nN, z2_ND, precision)), rounds)


def through_slabs(
    views: list[torch.Tensor],
    *,
    rows: slice,
    precision: torch.dtype,
    with_gradients: bool,
    num_ranks: int,
    columns: ModuleType,
) -> Products:
    """By slabs of M = N C from all rows, which every rank forms; the diagonal of C is left out of the products.

    views: Z1 and Z2, which are taken out of the list.
    """
    z1_ND, z2_ND = views
    views.clear()
    N, D = z1_ND.shape
    height = min(_SLAB[z1_ND.device.type], -(-D // 2))
    sums: dict[str, Any] = {"device": z1_ND.device, "dtype": torch.promote_types(z1_ND.dtype, torch.float32)}
    squared_norm = torch.zeros(columns.NUM_SHARES, **sums)
    z1_nD, z2_nD = z1_ND[rows], z2_ND[rows]
    if with_gradients:
        toward_1_nD, toward_2_nD = torch.empty(z1_nD.shape, **sums), torch.zeros(z1_nD.shape, **sums)
    for start in range(0, D, height):
        slab = slice(start, start + height)
        m_sD = product(z1_ND[:, slab].T, z2_ND, precision)
        m_sD = columns.drop_diagonal(m_sD, start, precision, squared_norm)
        if with_gradients:
            toward_1_nD[:, slab] = product(z2_nD, m_sD.T, precision)
            if precision == toward_2_nD.dtype:
                toward_2_nD.addmm_(z1_nD[:, slab], m_sD)
            else:
                toward_2_nD += product(z1_nD[:, slab], m_sD, precision)
    toward = (toward_1_nD, toward_2_nD) if with_gradients else None
    return Products(squared_norm / (N**2 * num_ranks), toward)


def _gram_rows(z_ND: torch.Tensor, rows: slice, precision: torch.dtype) -> torch.Tensor:
    """Rows of Z Z'."""
    N = len(z_ND)
    block = -(-N // _GRAM_BLOCKS)
    if z_ND.is_cuda or rows != slice(0, N) or precision == torch.bfloat16 or block < 32:
        return product(z_ND[rows], z_ND.T, precision)
    k_NN = z_ND.new_empty(N, N)
    for start in range(0, N, block):
        stop = min(start + block, N)
        torch.mm(z_ND[start:stop], z_ND[start:].T, out=k_NN[start:stop, start:])
        k_NN[start:stop, :start] = k_NN[:start, start:stop].T
    return k_NN
