"""Bootstrap draws and the jackknife of whole groups (patients, lesions) within classes, as weights of their samples.

A draw takes n - 1 of the n groups of a stratum, with replacement, and counts each n / (n - 1) times: so the variance of
the draws is that of the estimate, of which drawing n of n groups gives (n - 1) / n, half for a class of two groups.
Source: J. N. K. Rao and C. F. J. Wu, "Resampling inference with complex survey data", JASA 83, 1988, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastfgssl.evaluation.strata import strata_of

DRAWS = 2000
BLOCK = 100
"""Draws that exist at a time."""
_MOST_UNITS = 2000  # of a stratum
_MOST_DELETED = 100  # parts of a stratum that the jackknife leaves out, one after the other
_MOST_KEPT = 2**22  # weights that are drawn once and kept: 32 MiB, of 2,000 draws of some 2,000 units
_PARTING = 2**32  # what random numbers are for, beside the numbers of draws


class Resampling:
    """How M samples are drawn again.

    A stratum holds the groups that count for a class (strata.py). Each is drawn as a whole, with its samples of every
    class. A stratum of one group is left as it is: nothing tells how another group would differ. More than 2,000 groups
    of a stratum are drawn in 2,000 random parts of as many groups.
    """

    unit: np.ndarray
    """What each sample is drawn with: int64 [M], below `num_units`."""
    stratum: np.ndarray
    """Of each unit: int64 [num_units]."""
    groups_of_class: dict[int, int]
    """Groups with a sample of each class."""
    deleted_from: np.ndarray
    """The stratum that each replicate of `jackknife` leaves a part of out: int64 [J]."""
    is_parted: np.ndarray
    """Whether a stratum's parts are of several units: bool [strata]."""

    def __init__(self, truth: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> None:
        """truth, groups: int64 [M]."""
        self._seed = seed
        groups_of = strata_of(truth, groups)
        self.groups_of_class = groups_of.sizes
        unit = np.empty(len(groups_of.groups), np.int64)
        strata: list[np.ndarray] = []
        for stratum, label in enumerate(np.unique(groups_of.label)):
            # in a random order: parts are to be alike, whatever the order of the groups means
            members = self._generator(stratum, _PARTING).permutation(np.flatnonzero(groups_of.label == label))
            size = min(len(members), _MOST_UNITS)
            unit[members] = sum(map(len, strata)) + np.arange(len(members)) % size
            strata.append(np.full(size, stratum))
        self.unit, self.stratum = unit[groups_of.group], np.concatenate(strata)
        self._starts = np.searchsorted(self.stratum, np.arange(len(strata) + 1))
        self._kept: dict[int, list[np.ndarray]] = {}
        parts = np.minimum(np.diff(self._starts), _MOST_DELETED)
        self.is_parted = np.diff(self._starts) > parts
        self.deleted_from = np.repeat(np.arange(len(strata)), np.where(parts > 1, parts, 0))

    @property
    def num_units(self) -> int:
        return len(self.stratum)

    def draws(self, count: int = DRAWS) -> Iterator[np.ndarray]:
        """Weights of the units in each draw, float64 [num_units, BLOCK] at a time; always the same."""
        if self.num_units * count > _MOST_KEPT:
            yield from self._draw(count)
            return
        if count not in self._kept:
            self._kept[count] = list(self._draw(count))
        yield from self._kept[count]

    def _draw(self, count: int) -> Iterator[np.ndarray]:
        for first in range(0, count, BLOCK):
            weights = np.ones((self.num_units, min(BLOCK, count - first)))
            for stratum, rows in self._strata():
                size = rows.stop - rows.start
                if size == 1:
                    continue
                drawn = self._generator(stratum, first).integers(size, size=(weights.shape[1], size - 1))
                places = drawn + size * np.arange(len(drawn))[:, None]
                times = np.bincount(places.ravel(), minlength=size * len(drawn)).reshape(len(drawn), size)
                weights[rows] = times.T * (size / (size - 1))
            yield weights

    def jackknife(self) -> Iterator[np.ndarray]:
        """Weights with one part of one stratum left out, the others of the stratum in its place: [num_units, J] in all.

        Parts are single units, or of a larger stratum a hundredth. Source: P. S. Kott, "The delete-a-group
        jackknife", Journal of Official Statistics 17, 2001.
        """
        for _, rows in self._strata():
            size = rows.stop - rows.start
            parts = min(size, _MOST_DELETED)
            if size == 1:
                continue
            part = np.arange(size) % parts
            kept = part[:, None] != np.arange(parts)
            weights = np.ones((self.num_units, parts))
            weights[rows] = kept * (size / kept.sum(axis=0))
            yield weights

    def _strata(self) -> Iterator[tuple[int, slice]]:
        for stratum, (start, stop) in enumerate(zip(self._starts[:-1], self._starts[1:], strict=True)):
            yield stratum, slice(int(start), int(stop))

    def _generator(self, stratum: int, use: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(counter=[0, 0, stratum, use], key=self._seed))
