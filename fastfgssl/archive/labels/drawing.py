"""Splits drawn at random: groups stay whole, and each class and the whole come as near to their shares as that allows.

Groups are placed one by one: those with the rarest class first, of them the largest, and those of one size in a random
order. Each goes where it leaves the least error: the sum over classes, and once more over all samples, of
(count - target)^2 / target, which is Pearson's. For single samples of one class that is the method of Webster and
Sainte-Laguë, by which parliaments share out their seats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fastfgssl.runtime.errors import UserError

OPEN = -1
"""Of a sample: in no split yet."""
_NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}


def read_shares(text: str) -> dict[str, float]:
    """The share of each split that `text` asks for, such as 0.8/0.1/0.1 of train, val and test, or 0.8/0.2 without val.

    Raises UserError for anything else.
    """
    try:
        values = [float(word) for word in text.split("/")]
    except ValueError:
        values = []
    if len(values) not in _NAMES:
        raise UserError(
            f"split must be shares of train, val and test such as 0.8/0.1/0.1, or of train and test, not {text!r}"
        )
    names = _NAMES[len(values)]
    if not all(0 < value < np.inf for value in values):
        raise UserError(f"split {text}: each share must be above 0; two shares are those of train and test")
    if abs((total := sum(values)) - 1) > 1e-6:
        fitting = "/".join(f"{value / total:.4g}" for value in values)
        raise UserError(
            f"split {text}: the shares of {', '.join(names[:-1])} and {names[-1]} must sum to 1, and sum to {total:g}:"
            f" {fitting} would do"
        )
    return dict(zip(names, values, strict=True))


def units_of(num_samples: int, *links: np.ndarray) -> np.ndarray:
    """Which samples must stay together: a number for each, int64 [N].

    links: of each sample what it shares with others, such as its group, any integers [N]; -1 for nothing.
    """
    from scipy.sparse import coo_array  # half a second, which only those wait for who draw splits
    from scipy.sparse.csgraph import connected_components

    rows, columns, nodes = [], [], num_samples
    for link in links:
        shared = np.flatnonzero(link != -1)
        _, node = np.unique(link[shared], return_inverse=True)
        rows.append(shared)
        columns.append(node + nodes)
        nodes += int(node.max()) + 1 if len(node) else 0
    row, column = (np.concatenate([np.empty(0, np.int64), *parts]) for parts in (rows, columns))
    graph = coo_array((np.ones(len(row), np.int8), (row, column)), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][:num_samples].astype(np.int64)


def draw_splits(
    shares: Mapping[str, float],
    units: np.ndarray,
    classes: np.ndarray,
    hashes: np.ndarray,
    given: np.ndarray,
    seed: int,
) -> np.ndarray:
    """The split of each of N samples, as a number in `shares`, int64 [N].

    units: which samples stay together, integers from 0. classes: integers, -1 for none, which counts as one more.
    hashes: uint64 [N, 2], of what a sample shows: the order of the samples does not matter. given: the split that a
    sample is in, or `OPEN`; its unit follows the first that is in one.
    """
    order = np.lexsort((hashes[:, 1], hashes[:, 0], units))
    begins = np.flatnonzero(np.diff(units[order], prepend=-1))
    sizes = np.diff(begins, append=len(order)).tolist()
    split_of = np.full(len(begins), OPEN)
    for sample in np.flatnonzero(given != OPEN)[::-1].tolist():
        split_of[units[sample]] = given[sample]
    fixed = np.where(given != OPEN, given, split_of[units])
    _, codes = np.unique(classes, return_inverse=True)
    table = _Counts(list(shares.values()), np.bincount(codes))
    for (split, code), count in _counted(fixed[fixed != OPEN], codes[fixed != OPEN]):
        table.add(split, [(code, count)])
    of_unit: list[list[tuple[int, int]]] = [[] for _ in begins]
    for (unit, code), count in _counted(units, codes):
        of_unit[unit].append((code, count))
    totals = np.bincount(codes).tolist()
    rarest = [min(totals[code] for code, _ in counts) for counts in of_unit]
    key = int(seed).to_bytes(8, "big", signed=True)
    shown = hashes[order[begins]].astype(">u8").tobytes()  # the least of each unit: who else is in it does not matter
    drawn = [hashlib.blake2b(shown[16 * unit : 16 * unit + 16], key=key).digest() for unit in range(len(begins))]
    still_open = np.flatnonzero(split_of == OPEN).tolist()
    for unit in sorted(still_open, key=lambda unit: (rarest[unit], -sizes[unit], drawn[unit])):
        split_of[unit] = table.best(of_unit[unit])
        table.add(int(split_of[unit]), of_unit[unit])
    return np.where(given != OPEN, given, split_of[units])


def _counted(one: np.ndarray, two: np.ndarray) -> Iterator[tuple[tuple[int, int], int]]:
    """Each pair of integers that there is, and how often, in order."""
    width = int(two.max()) + 1 if len(two) else 1
    pairs, counts = np.unique(one * width + two, return_counts=True)
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        yield divmod(pair, width), count


class _Counts:
    """How many samples of each class are in each split, and how far that is from what it should be."""

    def __init__(self, shares: list[float], classes: np.ndarray) -> None:
        self._shares = shares
        self._totals = [*classes.tolist(), int(classes.sum())]
        self._over = [[-share * total for total in self._totals] for share in shares]

    def add(self, split: int, counts: Sequence[tuple[int, int]]) -> None:
        """Puts samples into a split: pairs of a class, and how many."""
        over = self._over[split]
        for code, count in counts:
            over[code] += count
            over[-1] += count

    def best(self, counts: Sequence[tuple[int, int]]) -> int:
        """The split that such samples leave with the least error."""
        terms = [*counts, (-1, sum(count for _, count in counts))]
        errors = [
            sum(count * (2 * over[code] + count) / self._totals[code] for code, count in terms) / share
            for over, share in zip(self._over, self._shares, strict=True)
        ]
        return errors.index(min(errors))
