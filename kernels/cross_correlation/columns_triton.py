"""The steps over columns of the cross-correlation loss on a GPU: what `columns.py` does, by Triton's kernels.

N rows of the whole batch, n rows of this rank, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton

from fastfgssl.kernels.cross_correlation import columns_triton_kernel as kernels
from fastfgssl.kernels.cross_correlation import products_triton_kernel as product_kernels
from fastfgssl.kernels.cross_correlation.reference import STANDARDISE_EPS

AUTOTUNE = False
"""Whether Triton measures tiles at the first call of a shape. A tile decides the order of sums: ranks, or two runs,
that choose differently have results that differ in their last bits. So it is for benchmarks."""
PROGRAMS_PER_SM = 4
"""How many programs a launch should have for each multiprocessor: more of them are more chunks to put together."""
TILE = {"ROWS": 32, "COLUMNS": 32}
"""What a program holds in registers at once: 128 bytes of float32 a row."""

NUM_SHARES = 1024
"""In how many parts the squared norm of C is added up, at most: a power of two."""

_TILES = [(32, 32, 4), (16, 32, 4), (64, 32, 8), (16, 64, 4), (32, 64, 8), (16, 128, 4)]  # and how many warps
_MAX_CHUNKS = 64  # a program puts the moments of all of them together at once
_NUMBERS = 1024  # of a program that goes over numbers
_SUMS = 128  # of a program that adds up chunks


@dataclass(kw_only=True)
class Standardised:
    """Both views' embeddings of the whole batch, how their columns are standardised, and what follows from columns."""

    views: list[torch.Tensor]
    """z1_ND and z2_ND in the precision of the products, which take them out of the list."""
    x_ND: tuple[torch.Tensor, torch.Tensor]
    """The embeddings as they came."""
    statistics_3D: tuple[torch.Tensor, torch.Tensor]
    """Of each view's columns: the mean, what its rounding left of it, and 1 / standard deviation."""
    slope_D: torch.Tensor
    totals: torch.Tensor


class Chunks(NamedTuple):
    """How the rows of a tensor are dealt to programs."""

    rows: int
    """Of a chunk; the last may have fewer."""
    number: int


def row_chunks(num_rows: int, D: int, device: torch.device) -> Chunks:
    """As many chunks as make `PROGRAMS_PER_SM` programs together with the blocks of columns, none below a tile."""
    tiles = triton.cdiv(num_rows, TILE["ROWS"])
    wanted = PROGRAMS_PER_SM * _multiprocessors(device) // triton.cdiv(D, TILE["COLUMNS"])
    number = max(1, min(wanted, tiles, _MAX_CHUNKS))
    rows = triton.cdiv(tiles, number) * TILE["ROWS"]
    return Chunks(rows, triton.cdiv(num_rows, rows))


def standardise(
    x1_ND: torch.Tensor,
    x2_ND: torch.Tensor,
    precision: torch.dtype,
    *,
    on_weight: float,
    off_weight: float,
    diagonal_in_product: bool,
) -> Standardised:
    (N, D), device = x1_ND.shape, x1_ND.device
    chunks = row_chunks(N, D, device)
    moments = torch.empty(7, chunks.number, D, device=device)
    grid = _grid(D, chunks)
    _launch(kernels._moments_kernel, grid, x1_ND, x2_ND, moments, N, D, chunks.rows)
    views = [torch.empty(N, D, device=device, dtype=precision) for _ in range(2)]
    statistics_3D = torch.empty(3, D, device=device), torch.empty(3, D, device=device)
    slope_D, terms = torch.empty(D, device=device), torch.empty(5, D, device=device)
    _launch(
        kernels._standardise_kernel, grid, x1_ND, x2_ND, moments, *views, *statistics_3D, slope_D, terms,
        N, D, chunks.rows, STANDARDISE_EPS, on_weight, off_weight if diagonal_in_product else 0.0, N / (N - 1),
        CHUNKS=triton.next_power_of_2(chunks.number),
    )  # fmt: skip
    return Standardised(
        views=views, x_ND=(x1_ND, x2_ND), statistics_3D=statistics_3D, slope_D=slope_D, totals=terms.sum(dim=1)
    )


def inner_product_and_shift(
    k1_nN: torch.Tensor, k2_nN: torch.Tensor, shifts: torch.Tensor, first_row: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, N = k1_nN.shape
    shifted = [k_nN if k_nN.dtype == dtype else torch.empty_like(k_nN, dtype=dtype) for k_nN in (k1_nN, k2_nN)]
    blocks = triton.cdiv(n * N, _NUMBERS)
    shares = torch.empty(min(NUM_SHARES, blocks), device=k1_nN.device)
    product_kernels._inner_product_and_shift_kernel[(len(shares),)](
        k1_nN, k2_nN, *shifted, shifts, shares, first_row, n, N, blocks, 1 / N**2, NUMBERS=_NUMBERS
    )
    return shares, shifted[0], shifted[1]


def drop_diagonal(m_sD: torch.Tensor, start: int, dtype: torch.dtype, squared_norm: torch.Tensor) -> torch.Tensor:
    s, D = m_sD.shape
    rounded_sD = m_sD if m_sD.dtype == dtype else torch.empty_like(m_sD, dtype=dtype)
    blocks = triton.cdiv(s * D, _NUMBERS)
    product_kernels._drop_diagonal_kernel[(min(NUM_SHARES, blocks),)](
        m_sD, rounded_sD, squared_norm, start, s, D, blocks, NUMBERS=_NUMBERS
    )
    return rounded_sD


def contract(
    squared_norm: torch.Tensor,
    toward: tuple[torch.Tensor, torch.Tensor],
    standardised: Standardised,
    *,
    scale: float,
    shifted: bool,
    rows: slice,
) -> torch.Tensor:
    (n, D), device = toward[0].shape, toward[0].device
    chunks = row_chunks(n, D, device)
    sums = torch.empty(chunks.number, 4, D, device=device)
    _launch(
        kernels._contract_kernel, _grid(D, chunks), *toward, *(x_ND[rows] for x_ND in standardised.x_ND),
        *standardised.statistics_3D, standardised.slope_D, standardised.totals[2:4], sums, n, D, chunks.rows, scale,
        SHIFTED=shifted,
    )  # fmt: skip
    shared = torch.empty(1 + 4 * D, device=device)
    kernels._add_up_kernel[(triton.cdiv(4 * D, _SUMS),)](
        squared_norm, sums, shared, len(squared_norm), chunks.number, D,
        SHARES=NUM_SHARES, CHUNKS=triton.next_power_of_2(chunks.number), NUMBERS=_SUMS,
    )  # fmt: skip
    return shared


def finish(
    toward: tuple[torch.Tensor, torch.Tensor],
    standardised: Standardised,
    sums: torch.Tensor,
    *,
    factor: float,
    rows: slice,
) -> tuple[torch.Tensor, torch.Tensor]:
    (n, D), N = toward[0].shape, len(standardised.x_ND[0])
    _launch(
        kernels._finish_kernel, lambda tile: (triton.cdiv(n, tile["ROWS"]), triton.cdiv(D, tile["COLUMNS"])),
        *toward, *(x_ND[rows] for x_ND in standardised.x_ND), *standardised.statistics_3D, sums, n, N, D, factor,
    )  # fmt: skip
    return toward


def loss_and_terms(
    squared_norm: torch.Tensor,
    standardised: Standardised,
    *,
    on_weight: float,
    off_weight: float,
    diagonal_in_product: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    device = squared_norm.device
    loss, terms = torch.empty((), device=device), torch.empty(3, device=device)
    kernels._loss_kernel[(1,)](
        squared_norm, standardised.totals, loss, terms, on_weight, off_weight, float(diagonal_in_product)
    )
    return loss, terms


def _grid(D: int, chunks: Chunks) -> Callable[[dict[str, int]], tuple[int, int]]:
    return lambda tile: (triton.cdiv(D, tile["COLUMNS"]), chunks.number)


def _launch(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
    if AUTOTUNE:
        _tuned(kernel)[grid](*arguments, **constants)
    else:
        kernel[grid](*arguments, **constants, **TILE)


@functools.cache
def _tuned(kernel):
    """The kernel with the tile that is fastest for its shape; what it works in place on is put back between trials."""
    configurations = [
        triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps) for rows, columns, warps in _TILES
    ]
    of_shape = [name for name in ("n", "N", "D") if name in kernel.arg_names]
    in_place = [name for name in ("gradient1", "gradient2") if name in kernel.arg_names]
    return triton.autotune(configurations, key=of_shape, restore_value=in_place)(kernel)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    # Triton's interpreter stands for a GPU of the size of an H100
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
