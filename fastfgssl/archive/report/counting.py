"""Counts of an archive's tables, in columns: a million rows cost no million Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.building.accounting import DUPLICATE, OUTCOMES, WRITTEN, outcome_codes
from fastfgssl.archive.building.plan import pixel_hashes


class Tally(NamedTuple):
    """How often each combination of values is there, the most frequent first."""

    rows: list[tuple]
    """The values and, last, how often. Equal numbers in the order of the values."""
    kinds: int
    """Combinations that are left out of `rows`,"""
    others: int
    """and how many times they are there."""


class Reason(NamedTuple):
    outcome: str
    reason: str
    """Its kind; empty for none."""
    inputs: int


class Copies(NamedTuple):
    """Inputs that repeat a sample, by their rows in the accounting, int64."""

    exact: np.ndarray
    near: np.ndarray
    of_samples: np.ndarray
    """How many inputs repeat each sample that any does, int64."""


def tally(table: pa.Table, columns: Sequence[str], most: int) -> Tally:
    """The `most` frequent combinations of some columns; None for null."""
    found = table.select(columns).group_by(list(columns), use_threads=False).aggregate([([], "count_all")])
    keys = [("count_all", "descending"), *((name, "ascending") for name in columns)]
    found = found.take(pc.sort_indices(found, sort_keys=keys))
    first, rest = found.slice(0, most), found.slice(most)
    rows = list(zip(*(first[name].to_pylist() for name in (*columns, "count_all")), strict=True))
    return Tally(rows, len(rest), int(pc.sum(rest["count_all"]).as_py() or 0))


def reasons(accounting: pa.Table, most: int) -> tuple[list[Reason], Tally]:
    """Why inputs were left out: outcome by outcome, the most frequent first; and what is beyond `most` kinds."""
    table = pa.table({"outcome": accounting["outcome"].cast(pa.string()), "reason": accounting["reason"]})
    table = table.filter(pc.not_equal(table["outcome"], OUTCOMES[WRITTEN]))
    found = tally(table, ("outcome", "reason"), most)
    rows = [Reason(outcome, reason or "", count) for outcome, reason, count in found.rows]
    return sorted(rows, key=lambda row: OUTCOMES.index(row.outcome)), found


def of_reason(accounting: pa.Table, outcome: str, reason: str) -> np.ndarray:
    """The rows that have both, bool [N]; an empty reason is none."""
    is_outcome = outcome_codes(accounting) == OUTCOMES.index(outcome)
    return is_outcome & pc.equal(pc.fill_null(accounting["reason"], ""), reason).to_numpy()


def drawn(ids: pa.ChunkedArray, which: np.ndarray, most: int) -> np.ndarray:
    """Rows of `which` (numbers, int64) whose ids come first: at random, since a key makes them, but always the same."""
    if not len(which):  # which some versions of pyarrow make nothing of
        return which
    table = pa.table({"id": ids.take(pa.array(which)), "row": which})
    keys = [("id", "ascending"), ("row", "ascending")]
    return which[pc.select_k_unstable(table, min(most, len(which)), sort_keys=keys).to_numpy()]


def copies(accounting: pa.Table, num_samples: int) -> Copies:
    """Which inputs repeat a sample, and whether by every pixel or nearly so."""
    codes = outcome_codes(accounting)
    rows = np.flatnonzero(codes == DUPLICATE)
    samples = accounting["sample"].take(pa.array(rows)).to_numpy().astype(np.int64)
    pixels = pixel_hashes(accounting["pixels"].take(pa.array(rows)))
    near = (pixels != pixels_of_samples(accounting, num_samples)[samples]).any(axis=1)
    return Copies(rows[~near], rows[near], np.unique(samples, return_counts=True)[1])


def pixels_of_samples(accounting: pa.Table, num_samples: int) -> np.ndarray:
    """Hashes of the pixels that samples have, uint64 [S, 2]."""
    written = np.flatnonzero(outcome_codes(accounting) == WRITTEN)
    pixels = np.zeros((num_samples, 2), np.uint64)
    samples = accounting["sample"].take(pa.array(written)).to_numpy().astype(np.int64)
    pixels[samples] = pixel_hashes(accounting["pixels"].take(pa.array(written)))
    return pixels


def binned(counts: np.ndarray) -> list[tuple[str, int]]:
    """How many of `counts`, from 1 upwards, are 1, 2, 3 to 4, 5 to 8 and so on: a word and a number each."""
    bins = np.bincount(np.ceil(np.log2(counts)).astype(np.int64)) if len(counts) else np.empty(0, np.int64)
    words = ["1", "2", *(f"{(1 << power - 1) + 1:,} to {1 << power:,}" for power in range(2, len(bins)))]
    return list(zip(words, bins.tolist(), strict=False))
