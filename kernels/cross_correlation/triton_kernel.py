"""The steps over columns of the cross-correlation loss as Triton kernels: what `torch_steps.py` does, for GPUs.

N rows of the whole batch, n rows of this rank, D features. A program takes a block of columns and goes down their rows,
or a block of numbers. Standardised numbers are made again from the embeddings wherever they are needed in float32: what
is kept of them, in the precision of the products, is for the products alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from fastfgssl.kernels.cross_correlation.reference import STANDARDISE_EPS

_ROWS, _COLUMNS = 64, 32  # of a program's block: 128 bytes of float32 a row
_NUMBERS = 1024  # of a program that goes over numbers


@dataclass(kw_only=True)
class View:
    """One view's embeddings of the whole batch, and how each column is standardised."""

    x_ND: torch.Tensor
    z_ND: torch.Tensor | None
    """Standardised, in the precision of the products; None after `release`."""
    how: torch.Tensor
    """[3, D] of columns: the mean, what its rounding left of it, and 1 / standard deviation."""


@triton.jit
def _block(x, rows, columns, n, D):
    """Numbers of a block in float32, 0 outside; and which of them are inside."""
    inside = (rows < n)[:, None] & (columns < D)[None, :]
    return tl.load(x + rows.to(tl.int64)[:, None] * D + columns[None, :], mask=inside, other=0).to(tl.float32), inside


@triton.jit
def _standardised(value, how, columns, D):
    """Numbers of a block, standardised in float32: finite, but wrong, outside."""
    live = columns < D
    mean, left = tl.load(how + columns, mask=live, other=0), tl.load(how + D + columns, mask=live, other=0)
    rstd = tl.load(how + 2 * D + columns, mask=live, other=0)
    return (value - mean[None, :] - left[None, :]) * rstd[None, :]


@triton.jit
def _standardise_kernel(x, z, how, N, D, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, N, ROWS):
        value, inside = _block(x, start + tl.arange(0, ROWS), columns, N, D)
        total += value
    mean_of = tl.sum(total, 0) / N
    total, squares = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, N, ROWS):
        value, inside = _block(x, start + tl.arange(0, ROWS), columns, N, D)
        centred = tl.where(inside, value - mean_of[None, :], 0.0)
        total += centred
        squares += centred * centred
    left_of = tl.sum(total, 0) / N
    rstd_of = 1.0 / tl.sqrt(tl.sum(squares, 0) / N - left_of * left_of + eps)
    tl.store(how + columns, mean_of, mask=columns < D)
    tl.store(how + D + columns, left_of, mask=columns < D)
    tl.store(how + 2 * D + columns, rstd_of, mask=columns < D)
    for start in range(0, N, ROWS):
        rows = start + tl.arange(0, ROWS)
        value, inside = _block(x, rows, columns, N, D)
        standardised = (value - mean_of[None, :] - left_of[None, :]) * rstd_of[None, :]
        to = z + rows.to(tl.int64)[:, None] * D + columns[None, :]
        tl.store(to, standardised.to(z.dtype.element_ty), mask=inside)


@triton.jit
def _compare_kernel(
    x1, how1, x2, how2, slope, terms, N, D, eps, on_weight, off_weight,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    live = columns < D
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, N, ROWS):
        rows = start + tl.arange(0, ROWS)
        value1, inside = _block(x1, rows, columns, N, D)
        value2, inside = _block(x2, rows, columns, N, D)
        product = _standardised(value1, how1, columns, D) * _standardised(value2, how2, columns, D)
        total += tl.where(inside, product, 0.0)
    diagonal = tl.sum(total, 0) / N
    apart = 1.0 - diagonal
    tl.store(slope + columns, -2.0 / N * (on_weight * apart + off_weight * diagonal), mask=live)
    s1 = tl.load(how1 + 2 * D + columns, mask=live, other=0)
    s2 = tl.load(how2 + 2 * D + columns, mask=live, other=0)
    lost1, lost2 = eps * s1 * s1, eps * s2 * s2
    tl.store(terms + columns, apart * apart, mask=live)
    tl.store(terms + D + columns, diagonal * diagonal, mask=live)
    tl.store(terms + 2 * D + columns, 1.0 - lost1, mask=live)
    tl.store(terms + 3 * D + columns, 1.0 - lost2, mask=live)
    tl.store(terms + 4 * D + columns, tl.where(tl.maximum(lost1, lost2) > 0.5, 1.0, 0.0), mask=live)


@triton.jit
def _inner_product_and_shift_kernel(
    k1, k2, to1, to2, shifts, inner, first, n, N, NUMBERS: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
    inside = at < tl.cast(n, tl.int64) * N  # an n of 1 is a constant, and no tensor
    value1, value2 = tl.load(k1 + at, mask=inside, other=0), tl.load(k2 + at, mask=inside, other=0)
    tl.store(inner + tl.program_id(0), tl.sum(value1 * value2, 0))
    identity = tl.where(at // N + first == at % N, 1.0, 0.0) - 1.0 / N
    tl.store(to1 + at, (value1 - tl.load(shifts) * identity).to(to1.dtype.element_ty), mask=inside)
    tl.store(to2 + at, (value2 - tl.load(shifts + 1) * identity).to(to2.dtype.element_ty), mask=inside)


@triton.jit
def _contract_kernel(
    product, x_own, how_own, x_other, how_other, slope, shift, sums, n, D, scale,
    HAS_SHIFT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    live = columns < D
    slope_of = tl.load(slope + columns, mask=live, other=0)
    shift_of = scale * tl.load(shift) if HAS_SHIFT else 0.0
    sum_g, sum_gz = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, n, ROWS):
        rows = start + tl.arange(0, ROWS)
        value, inside = _block(product, rows, columns, n, D)
        own, inside = _block(x_own, rows, columns, n, D)
        other, inside = _block(x_other, rows, columns, n, D)
        z_own = _standardised(own, how_own, columns, D)
        g = scale * value + shift_of * z_own + slope_of[None, :] * _standardised(other, how_other, columns, D)
        g = tl.where(inside, g, 0.0)
        sum_g += g
        sum_gz += g * z_own
        tl.store(product + rows.to(tl.int64)[:, None] * D + columns[None, :], g, mask=inside)
    tl.store(sums + columns, tl.sum(sum_g, 0), mask=live)
    tl.store(sums + D + columns, tl.sum(sum_gz, 0), mask=live)


@triton.jit
def _finish_kernel(
    gradient, x_own, how_own, sums, n, N, D, factor, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    live = columns < D
    rstd = tl.load(how_own + 2 * D + columns, mask=live, other=0)
    mean_g = tl.load(sums + columns, mask=live, other=0) / N
    mean_gz = tl.load(sums + D + columns, mask=live, other=0) / N
    g, inside = _block(gradient, rows, columns, n, D)
    own, inside = _block(x_own, rows, columns, n, D)
    z = _standardised(own, how_own, columns, D)
    result = (factor * rstd)[None, :] * (g - mean_g[None, :] - z * mean_gz[None, :])
    tl.store(gradient + rows.to(tl.int64)[:, None] * D + columns[None, :], result, mask=inside)


def standardise(x_ND: torch.Tensor, precision: torch.dtype) -> View:
    N, D = x_ND.shape
    z_ND = torch.empty(N, D, device=x_ND.device, dtype=precision)
    how = torch.empty(3, D, device=x_ND.device)
    _standardise_kernel[(triton.cdiv(D, _COLUMNS),)](
        x_ND, z_ND, how, N, D, STANDARDISE_EPS, ROWS=_ROWS, COLUMNS=_COLUMNS
    )
    return View(x_ND=x_ND, z_ND=z_ND, how=how)


def release(view: View) -> None:
    view.z_ND = None


def compare_columns(
    view1: View, view2: View, *, on_weight: float, off_weight: float, diagonal_in_product: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    N, D = view1.x_ND.shape
    slope_D, terms = torch.empty(D, device=view1.how.device), torch.empty(5, D, device=view1.how.device)
    _compare_kernel[(triton.cdiv(D, _COLUMNS),)](
        view1.x_ND, view1.how, view2.x_ND, view2.how, slope_D, terms, N, D,
        STANDARDISE_EPS, on_weight, off_weight if diagonal_in_product else 0.0, ROWS=_ROWS, COLUMNS=_COLUMNS,
    )  # fmt: skip
    return slope_D, terms.sum(dim=1)


def inner_product_and_shift(
    k1_nN: torch.Tensor, k2_nN: torch.Tensor, shifts: torch.Tensor, first: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, N = k1_nN.shape
    to1_nN, to2_nN = (k_nN if k_nN.dtype == dtype else torch.empty_like(k_nN, dtype=dtype) for k_nN in (k1_nN, k2_nN))
    programs = triton.cdiv(n * N, _NUMBERS)
    inner = torch.empty(programs, device=k1_nN.device)
    _inner_product_and_shift_kernel[(programs,)](
        k1_nN, k2_nN, to1_nN, to2_nN, shifts, inner, first, n, N, NUMBERS=_NUMBERS
    )
    return inner.sum(), to1_nN, to2_nN


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
    n, D = product_nD.shape
    sums = torch.empty(2, D, device=product_nD.device)
    _contract_kernel[(triton.cdiv(D, _COLUMNS),)](
        product_nD, own.x_ND[rows], own.how, other.x_ND[rows], other.how, slope_D,
        slope_D if shift is None else shift, sums, n, D, scale, HAS_SHIFT=shift is not None, ROWS=_ROWS,
        COLUMNS=_COLUMNS,
    )  # fmt: skip
    return sums


def finish(gradient_nD: torch.Tensor, own: View, *, rows: slice, sums: torch.Tensor, factor: float) -> torch.Tensor:
    (n, D), N = gradient_nD.shape, len(own.x_ND)
    _finish_kernel[(triton.cdiv(n, _ROWS), triton.cdiv(D, _COLUMNS))](
        gradient_nD, own.x_ND[rows], own.how, sums, n, N, D, factor, ROWS=_ROWS, COLUMNS=_COLUMNS
    )
    return gradient_nD
