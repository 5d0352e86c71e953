"""Which samples fit a classifier and which score it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.philox import random_words, uniform
from fastfgssl.errors import UserError

FIT_NAMES = ("fit", "train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")
_VAL_SHARE = 0.25
_SPLIT_NUMBERS = 64  # a use of random numbers that training does not have


class Split(NamedTuple):
    """Sample numbers, int64, ascending."""

    fit: np.ndarray
    val: np.ndarray


def split_samples(archive: Archive) -> Split:
    """The archive's own split (labels CSV with a `split` column), else a random quarter of its groups scores.

    Without groups every sample is its own. The random split is the same for every run and network.
    """
    ids = np.arange(archive.num_samples)
    names = archive.columns(ids, ("split",))["split"] if archive.has_column("split") else np.full(len(ids), None)
    if any(name is not None for name in names):
        split = Split(ids[np.isin(names, FIT_NAMES)], ids[np.isin(names, VAL_NAMES)])
        if len(split.fit) == 0 or len(split.val) == 0:
            found = sorted({str(name) for name in names})
            raise UserError(
                f"{archive.path}: column split holds {', '.join(found)}; it must name samples that fit"
                f" ({', '.join(FIT_NAMES)}) and samples that score ({', '.join(VAL_NAMES)})"
            )
        return split
    groups = archive.columns(ids, ("group",))["group"] if archive.has_column("group") else ids
    # a sample without a group is one of its own, told apart from the others by its number
    keys = np.where(groups >= 0, groups, ids + groups.max() + 1)
    scores = uniform(random_words(0, 0, keys, _SPLIT_NUMBERS, 1))[:, 0] < _VAL_SHARE
    return Split(ids[~scores], ids[scores])


def labelled_split(archive: Archive) -> tuple[Split, np.ndarray]:
    """The split without the samples that have no label, and the labels of all samples (int64, -1 for none).

    Raises `UserError` for an archive without labels, or with fewer than two classes to fit.
    """
    if not archive.has_column("label"):
        raise UserError(f"{archive.path} has no labels: prepare it with --labels, or use --protocol matching")
    labels = archive.columns(np.arange(archive.num_samples), ("label",))["label"].astype(np.int64)
    split = Split(*(ids[labels[ids] >= 0] for ids in split_samples(archive)))
    if len(np.unique(labels[split.fit])) < 2 or len(split.val) == 0:
        raise UserError(f"{archive.path}: needs two classes or more among the fitting samples, and samples to score")
    return split, labels


def groups_of(archive: Archive, ids: np.ndarray) -> np.ndarray:
    """Group of each sample (int64 [N]); samples without one are groups of their own."""
    if not archive.has_column("group"):
        return ids
    groups = archive.columns(ids, ("group",))["group"]
    return np.where(groups >= 0, groups, ids + archive.num_samples)
