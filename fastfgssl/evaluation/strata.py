"""Which class a group (a patient, a lesion) counts for, where groups are drawn within classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Strata(NamedTuple):
    """G groups of M samples of K classes.

    A group whose samples are of several classes counts for the one with the fewest groups, so that a rare class keeps
    its groups wherever as many of each class are drawn.
    """

    groups: np.ndarray  # int64 [G], ascending
    group: np.ndarray  # int64 [M]: place in `groups` of each sample's
    label: np.ndarray  # int64 [G]: the class that each group counts for
    sizes: dict[int, int]  # groups with a sample of each class


def strata_of(labels: np.ndarray, groups: np.ndarray) -> Strata:
    """labels, groups: int64 [M]."""
    names, group = np.unique(groups, return_inverse=True)
    classes, place = np.unique(labels, return_inverse=True)
    pairs = np.unique(np.stack([group, place]), axis=1)
    sizes = np.bincount(pairs[1], minlength=len(classes))
    by_size = np.argsort(sizes, kind="stable")
    rank = np.argsort(by_size)
    rarest = np.full(len(names), len(classes))
    np.minimum.at(rarest, pairs[0], rank[pairs[1]])
    return Strata(names, group, classes[by_size[rarest]], dict(zip(classes.tolist(), sizes.tolist(), strict=True)))
