"""The kernels over the matrices of the cross-correlation loss, in Triton: one pass from a product to the next.

N rows of the whole batch, n rows of this rank, D features. A program takes blocks of numbers, each so many further on.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _inner_product_and_shift_kernel(
    k1, k2, shifted1, shifted2, shifts, shares, first_row, n, N, blocks, weight, NUMBERS: tl.constexpr
):  # fmt: skip
    """weight <K1, K2>, a share for each program, and both K - shift (I - 11'/N); K [n, N], rows from `first_row` on."""
    share = tl.zeros([NUMBERS], tl.float32)
    shift1, shift2 = tl.load(shifts), tl.load(shifts + 1)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        index = tl.cast(block, tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
        inside = index < tl.cast(n, tl.int64) * N  # an n of 1 is a constant, and no tensor
        value1, value2 = tl.load(k1 + index, mask=inside, other=0), tl.load(k2 + index, mask=inside, other=0)
        share += value1 * value2
        identity = tl.where(index // N + first_row == index % N, 1.0, 0.0) - 1.0 / N
        out1, out2 = value1 - shift1 * identity, value2 - shift2 * identity
        tl.store(shifted1 + index, out1.to(shifted1.dtype.element_ty), mask=inside)
        tl.store(shifted2 + index, out2.to(shifted2.dtype.element_ty), mask=inside)
    tl.store(shares + tl.program_id(0), weight * tl.sum(share, 0))


@triton.jit
def _drop_diagonal_kernel(m, rounded, shares, start, s, D, blocks, NUMBERS: tl.constexpr):
    """A slab M [s, D] of N C, from row `start` on, with zeros for the diagonal of C; its squares, added to shares."""
    share = tl.zeros([NUMBERS], tl.float32)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        index = block * NUMBERS + tl.arange(0, NUMBERS)
        inside = index < s * D
        value = tl.load(m + index, mask=inside, other=0)
        value = tl.where(index // D + start == index % D, 0.0, value)
        share += value * value
        tl.store(rounded + index, value.to(rounded.dtype.element_ty), mask=inside)
    out = shares + tl.program_id(0)
    tl.store(out, tl.load(out) + tl.sum(share, 0))
