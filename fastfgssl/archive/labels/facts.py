"""What labels say of the entries of a listing, as columns; and what images that repeat each other say of each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fastfgssl.archive.building.keys import Key
from fastfgssl.archive.building.tables import SampleLabels

NOTHING = -1


class Column(NamedTuple):
    """One thing that is said of N entries, in few words for many of them."""

    words: list[str]
    code: np.ndarray
    """Which word, int32 [N]; `NOTHING` where nothing is said."""

    @classmethod
    def of(cls, values: Iterable[str | None]) -> Column:
        """The column of the values themselves."""
        words: dict[str, int] = {}
        code = [NOTHING if value is None else words.setdefault(value, len(words)) for value in values]
        return cls(list(words), np.array(code, np.int32))


class EntryLabels(NamedTuple):
    """What is said of the entries of a listing, a row each."""

    label: Column
    group: Column
    split: Column

    def of(self, rows: np.ndarray, key: Key) -> SampleLabels:
        """What is said of the samples that were made of `rows`: labels and splits by their words, groups by a hash."""
        label, split = (
            pa.array(column.words, pa.string()).take(_codes(column.code[rows])) for column in (self.label, self.split)
        )
        hashes = pa.array([key.group(name) for name in self.group.words], pa.int64())
        return SampleLabels(label, hashes.take(_codes(self.group.code[rows])), split)


class Contradiction(NamedTuple):
    """Images of the same pixels, of which labels say different things."""

    what: str
    """label, group or split."""
    first: int
    other: int
    """Rows of the listing."""


def share(labels: EntryLabels, first: np.ndarray, other: np.ndarray) -> list[Contradiction]:
    """Lets rows `first` know what is said of the rows `other` that repeat them, and returns where the two differ.

    Changes `labels` in place, where nothing is said of the first.
    """
    found = []
    for what, column in labels._asdict().items():
        for one, two in zip(first.tolist(), other.tolist(), strict=True):
            if column.code[two] == NOTHING:
                continue
            if column.code[one] == NOTHING:
                column.code[one] = column.code[two]
            elif column.code[one] != column.code[two]:
                found.append(Contradiction(what, one, two))
    return found


def _codes(code: np.ndarray) -> pa.Array:
    return pa.array(code, pa.int32(), mask=code == NOTHING)
