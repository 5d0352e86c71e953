"""The kernels over columns of the cross-correlation loss, in Triton; `columns_triton.py` launches them.

N rows of the whole batch, n rows of this rank, D features, eps that of the standardisation. A program takes a block of
columns and a chunk of their rows, a tile of [ROWS, COLUMNS] at a time, of both views at once. There are no atomics: a
program writes the sums of its chunk, and a later kernel adds chunks up in their order, the same each time.

Standardised numbers are made again from the embeddings wherever they are needed in float32: what is kept of them, in
the precision of the products, is for the products alone.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(x, rows, columns, end, D):
    """Numbers [ROWS, COLUMNS] in float32, 0 outside; and which of them are inside: rows before `end`, columns of D."""
    inside = (rows < end)[:, None] & (columns < D)[None, :]
    return tl.load(x + rows.to(tl.int64)[:, None] * D + columns[None, :], mask=inside, other=0).to(tl.float32), inside


@triton.jit
def _store_tile(x, value, rows, columns, inside, D):
    tl.store(x + rows.to(tl.int64)[:, None] * D + columns[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _moments_kernel(x1, x2, moments, N, D, chunk_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of each column, over the n_c rows of a chunk c, for both views:

        mean_c = reference + shift,    squares_c = sum (x - mean_c)^2,    cross_c = sum (x1 - mean1_c) (x2 - mean2_c)

    moments [7, chunks, D]: reference, shift, squares of the first view; of the second; cross. Rows are read once, so
    sums are taken about the mean of the chunk's first ROWS rows, which is near enough for nothing to cancel.
    """
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    first = chunk * chunk_rows
    end = tl.minimum(first + chunk_rows, N)
    count = (end - first).to(tl.float32)
    rows = first + tl.arange(0, ROWS)
    value1, inside = _tile(x1, rows, columns, end, D)
    value2, inside = _tile(x2, rows, columns, end, D)
    reference1, reference2 = tl.sum(value1, 0) / tl.minimum(count, ROWS), tl.sum(value2, 0) / tl.minimum(count, ROWS)
    zeros = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum1, sum2, squares1, squares2, cross = zeros, zeros, zeros, zeros, zeros
    for start in range(first, end, ROWS):
        centred1 = tl.where(inside, value1 - reference1[None, :], 0.0)
        centred2 = tl.where(inside, value2 - reference2[None, :], 0.0)
        # the next rows are on their way while these are added up
        rows = start + ROWS + tl.arange(0, ROWS)
        value1, inside = _tile(x1, rows, columns, end, D)
        value2, inside = _tile(x2, rows, columns, end, D)
        sum1 += centred1
        sum2 += centred2
        squares1 += centred1 * centred1
        squares2 += centred2 * centred2
        cross += centred1 * centred2
    total1, total2 = tl.sum(sum1, 0), tl.sum(sum2, 0)
    shift1, shift2 = total1 / count, total2 / count
    # rounding may leave less than nothing of a large constant
    about_mean1 = tl.maximum(tl.sum(squares1, 0) - total1 * shift1, 0.0)
    about_mean2 = tl.maximum(tl.sum(squares2, 0) - total2 * shift2, 0.0)
    live = columns < D
    out = moments + chunk * D + columns
    step = chunks * D
    tl.store(out, reference1, mask=live)
    tl.store(out + step, shift1, mask=live)
    tl.store(out + 2 * step, about_mean1, mask=live)
    tl.store(out + 3 * step, reference2, mask=live)
    tl.store(out + 4 * step, shift2, mask=live)
    tl.store(out + 5 * step, about_mean2, mask=live)
    tl.store(out + 6 * step, tl.sum(cross, 0) - total1 * shift2, mask=live)


@triton.jit
def _rows_of_chunks(x, columns, chunks, D, CHUNKS: tl.constexpr):
    """x [chunks, D] at these columns: [CHUNKS, COLUMNS], 0 outside."""
    chunk = tl.arange(0, CHUNKS)
    inside = (chunk < chunks)[:, None] & (columns < D)[None, :]
    return tl.load(x + chunk[:, None] * D + columns[None, :], mask=inside, other=0)


@triton.jit
def _combine(moments, counts, columns, chunks, N, D, eps, CHUNKS: tl.constexpr):
    """The statistics of all rows from a view's moments [3, chunks, D] of n_c = counts rows each:

        mean = sum n_c mean_c / N,    variance = sum (squares_c + n_c (mean_c - mean)^2) / N

    Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979. Means are
    taken about the first reference, so that a column far from zero is as exact as any; what float32 cannot hold of
    their sum is the remainder. Returns mean, remainder, (variance + eps)^(-1/2), and mean_c - mean [CHUNKS, COLUMNS].
    """
    step = chunks * D
    reference = tl.load(moments + columns, mask=columns < D, other=0)
    away = _rows_of_chunks(moments, columns, chunks, D, CHUNKS) - reference[None, :]
    away += _rows_of_chunks(moments + step, columns, chunks, D, CHUNKS)
    rows = tl.cast(N, tl.float32)
    shift = tl.div_rn(tl.sum(counts[:, None] * away, 0), rows)
    away -= shift[None, :]
    squares = _rows_of_chunks(moments + 2 * step, columns, chunks, D, CHUNKS) + counts[:, None] * away * away
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(squares, 0), rows) + eps))
    # Knuth's sum of two numbers and its rounding error
    mean = reference + shift
    added = mean - reference
    remainder = (reference - (mean - added)) + (shift - added)
    return mean, remainder, rstd, away


@triton.jit
def _standardise_kernel(
    x1, x2, moments, z1, z2, statistics1, statistics2, slope, terms,
    N, D, chunk_rows, eps, on_weight, off_weight, shift_weight,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """z = (x - mean) (variance + eps)^(-1/2) of both views, and the diagonal of C, from what `_moments_kernel` left:

        C_ii = z1_i' z2_i / N = rstd1 rstd2 sum (cross_c + n_c (mean1_c - mean1) (mean2_c - mean2)) / N
        slope_i = -2 / N (on_weight (1 - C_ii) + off_weight C_ii)

    statistics [3, D] of a view: mean, remainder, rstd. terms [5, D]: (1 - C_ii)^2; C_ii^2; shift_weight times the
    variance of the standardised column, for each view; and whether the column is dead.
    """
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    counts = tl.minimum(tl.maximum(N - tl.arange(0, CHUNKS) * chunk_rows, 0), chunk_rows).to(tl.float32)
    step = chunks * D
    mean1, remainder1, rstd1, away1 = _combine(moments, counts, columns, chunks, N, D, eps, CHUNKS)
    mean2, remainder2, rstd2, away2 = _combine(moments + 3 * step, counts, columns, chunks, N, D, eps, CHUNKS)
    if chunk == 0:
        live = columns < D
        tl.store(statistics1 + columns, mean1, mask=live)
        tl.store(statistics1 + D + columns, remainder1, mask=live)
        tl.store(statistics1 + 2 * D + columns, rstd1, mask=live)
        tl.store(statistics2 + columns, mean2, mask=live)
        tl.store(statistics2 + D + columns, remainder2, mask=live)
        tl.store(statistics2 + 2 * D + columns, rstd2, mask=live)
        cross = _rows_of_chunks(moments + 6 * step, columns, chunks, D, CHUNKS) + counts[:, None] * away1 * away2
        diagonal = tl.div_rn(tl.sum(cross, 0), tl.cast(N, tl.float32)) * rstd1 * rstd2
        apart = 1.0 - diagonal
        tl.store(slope + columns, -2.0 / N * (on_weight * apart + off_weight * diagonal), mask=live)
        # eps over (variance + eps): 0 for a live column, 1 for a constant one
        lost1, lost2 = eps * rstd1 * rstd1, eps * rstd2 * rstd2
        tl.store(terms + columns, apart * apart, mask=live)
        tl.store(terms + D + columns, diagonal * diagonal, mask=live)
        tl.store(terms + 2 * D + columns, shift_weight * (1.0 - lost1), mask=live)
        tl.store(terms + 3 * D + columns, shift_weight * (1.0 - lost2), mask=live)
        tl.store(terms + 4 * D + columns, tl.where(tl.maximum(lost1, lost2) > 0.5, 1.0, 0.0), mask=live)
    first = chunk * chunk_rows
    end = tl.minimum(first + chunk_rows, N)
    for start in range(first, end, ROWS):
        rows = start + tl.arange(0, ROWS)
        value1, inside = _tile(x1, rows, columns, end, D)
        value2, inside = _tile(x2, rows, columns, end, D)
        standardised1 = (value1 - mean1[None, :] - remainder1[None, :]) * rstd1[None, :]
        standardised2 = (value2 - mean2[None, :] - remainder2[None, :]) * rstd2[None, :]
        _store_tile(z1, standardised1, rows, columns, inside, D)
        _store_tile(z2, standardised2, rows, columns, inside, D)


@triton.jit
def _standardised(value, statistics, columns, D):
    """(x - mean) rstd of a tile: finite, but wrong, outside."""
    live = columns < D
    mean = tl.load(statistics + columns, mask=live, other=0)
    remainder = tl.load(statistics + D + columns, mask=live, other=0)
    rstd = tl.load(statistics + 2 * D + columns, mask=live, other=0)
    return (value - mean[None, :] - remainder[None, :]) * rstd[None, :]


@triton.jit
def _contract_kernel(
    gradient1, gradient2, x1, x2, statistics1, statistics2, slope, shifts, sums, n, D, chunk_rows, scale,
    SHIFTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradients of standardised rows, in place of the products that `gradient1` and `gradient2` hold:

        g1 = scale (product1 + shift2 z1) + slope z2,    g2 = scale (product2 + shift1 z2) + slope z1

    The shifts are what was taken out of the other view's Gram matrix, if SHIFTED. sums [chunks, 4, D]: g1, g1 z1, g2
    and g2 z2 added up over a chunk's rows.
    """
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    chunk = tl.program_id(1)
    live = columns < D
    slope_of = tl.load(slope + columns, mask=live, other=0)[None, :]
    scaled_shift1 = scale * tl.load(shifts) if SHIFTED else 0.0
    scaled_shift2 = scale * tl.load(shifts + 1) if SHIFTED else 0.0
    zeros = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_g1, sum_g2, sum_gz1, sum_gz2 = zeros, zeros, zeros, zeros
    first = chunk * chunk_rows
    end = tl.minimum(first + chunk_rows, n)
    for start in range(first, end, ROWS):
        rows = start + tl.arange(0, ROWS)
        product1, inside = _tile(gradient1, rows, columns, end, D)
        product2, inside = _tile(gradient2, rows, columns, end, D)
        value1, inside = _tile(x1, rows, columns, end, D)
        value2, inside = _tile(x2, rows, columns, end, D)
        z1 = _standardised(value1, statistics1, columns, D)
        z2 = _standardised(value2, statistics2, columns, D)
        g1 = tl.where(inside, scale * product1 + scaled_shift2 * z1 + slope_of * z2, 0.0)
        g2 = tl.where(inside, scale * product2 + scaled_shift1 * z2 + slope_of * z1, 0.0)
        _store_tile(gradient1, g1, rows, columns, inside, D)
        _store_tile(gradient2, g2, rows, columns, inside, D)
        sum_g1 += g1
        sum_g2 += g2
        sum_gz1 += g1 * z1
        sum_gz2 += g2 * z2
    out = sums + chunk * 4 * D + columns
    tl.store(out, tl.sum(sum_g1, 0), mask=live)
    tl.store(out + D, tl.sum(sum_gz1, 0), mask=live)
    tl.store(out + 2 * D, tl.sum(sum_g2, 0), mask=live)
    tl.store(out + 3 * D, tl.sum(sum_gz2, 0), mask=live)


@triton.jit
def _add_up_kernel(
    shares, sums, total, num_shares, chunks, D, SHARES: tl.constexpr, CHUNKS: tl.constexpr, NUMBERS: tl.constexpr
):  # fmt: skip
    """total [1 + 4 D]: the sum of shares [num_shares], and of sums [chunks, 4 D] over chunks."""
    columns = tl.program_id(0) * NUMBERS + tl.arange(0, NUMBERS)
    chunk_sums = _rows_of_chunks(sums, columns, chunks, 4 * D, CHUNKS)
    tl.store(total + 1 + columns, tl.sum(chunk_sums, 0), mask=columns < 4 * D)
    if tl.program_id(0) == 0:
        index = tl.arange(0, SHARES)
        tl.store(total, tl.sum(tl.load(shares + index, mask=index < num_shares, other=0), 0))


@triton.jit
def _finish_kernel(
    gradient1, gradient2, x1, x2, statistics1, statistics2, sums, n, N, D, factor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dL/dx = factor rstd (g - mean(g) - z mean(g z)) of both views, in place of g; sums [4, D] over all N rows."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    _finish_view(gradient1, x1, statistics1, sums, rows, columns, n, N, D, factor)
    _finish_view(gradient2, x2, statistics2, sums + 2 * D, rows, columns, n, N, D, factor)


@triton.jit
def _finish_view(gradient, x, statistics, sums, rows, columns, n, N, D, factor):
    live = columns < D
    mean_g = tl.load(sums + columns, mask=live, other=0) / N
    mean_gz = tl.load(sums + D + columns, mask=live, other=0) / N
    rstd = tl.load(statistics + 2 * D + columns, mask=live, other=0)
    g, inside = _tile(gradient, rows, columns, n, D)
    value, inside = _tile(x, rows, columns, n, D)
    z = _standardised(value, statistics, columns, D)
    result = (factor * rstd)[None, :] * (g - mean_g[None, :] - z * mean_gz[None, :])
    _store_tile(gradient, result, rows, columns, inside, D)


@triton.jit
def _loss_kernel(squared_norm, totals, loss, terms, on_weight, off_weight, diagonal_weight):
    """loss = on_weight on + off_weight off; terms [3]: on = sum (1 - C_ii)^2, off, and how many columns are dead.

    off = sum C_ij^2 - diagonal_weight sum C_ii^2, at least 0: 1 where the squared norm has the diagonal, 0 where it has
    not.
    """
    on_diagonal, dead = tl.load(totals), tl.load(totals + 4)
    off_diagonal = tl.load(squared_norm) - diagonal_weight * tl.load(totals + 1)
    off_diagonal = tl.where(off_diagonal < 0, 0.0, off_diagonal)  # by rounding; a NaN stays one
    tl.store(loss, on_weight * on_diagonal + off_weight * off_diagonal)
    tl.store(terms, on_diagonal)
    tl.store(terms + 1, off_diagonal)
    tl.store(terms + 2, dead)
