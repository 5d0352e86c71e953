"""Which samples train a classifier and which score it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from fastfgssl.archive.labels.splits import SPLITS, standard_split
from fastfgssl.archive.manifest import Archive
from fastfgssl.config.section import require
from fastfgssl.data.philox import Use, random_words, uniform
from fastfgssl.evaluation.strata import strata_of
from fastfgssl.runtime.errors import UserError

ScoringSplit = Literal["val", "test"]
_VAL_SHARE = 0.25


class Split(NamedTuple):
    """Sample numbers, int64, ascending, of the training split and of those that score."""

    train: np.ndarray
    val: np.ndarray
    name: str
    """Of the scoring samples: `val` or `test`, as the archive has it, or `random quarter`."""
    left_out: dict[str, int]
    """Samples that are neither, by the split that the archive names for them."""


def split_samples(archive: Archive, scoring: ScoringSplit | None = None) -> Split:
    """The archive's own split (labels CSV with a `split` column), else a random quarter of its groups scores.

    scoring: the split that scores; None takes `val`, or `test` in an archive without `val`. Without groups every sample
    is its own. The random split is the same for every run and network. Raises `UserError` if the archive's split has no
    samples to train on, or none that score.
    """
    ids = np.arange(archive.num_samples)
    names = named_splits(archive)
    if names is not None:
        return _own_split(archive, names, scoring)
    if scoring is not None:
        raise UserError(f"{archive.path} names no splits: prepare it with a column `split`, or leave out --split")
    return _random_quarter(archive, ids)


def _random_quarter(archive: Archive, ids: np.ndarray) -> Split:
    """`ids` (int64 [M]), of which a quarter of the groups scores."""
    all_ids = np.arange(archive.num_samples)
    groups = archive.columns(all_ids, ("group",))["group"] if archive.has_column("group") else all_ids
    # a sample without a group is one of its own, told apart from the others by its number
    keys = np.where(groups >= 0, groups, all_ids + groups.max() + 1)[ids]
    scores = uniform(random_words(0, 0, keys, Use.SPLIT, 1))[:, 0] < _VAL_SHARE
    return Split(ids[~scores], ids[scores], "random quarter", {})


def named_splits(archive: Archive) -> np.ndarray | None:
    """For each sample the split that the archive names, as `NAMES` has it; None if it names none."""
    if not archive.has_column("split"):
        return None
    written = archive.columns(np.arange(archive.num_samples), ("split",))["split"]
    return np.array([_standard_name(name) for name in written]) if any(name is not None for name in written) else None


def _standard_name(written: str | None) -> str:
    return "no split" if written is None else standard_split(written) or written.strip()


def _own_split(archive: Archive, names: np.ndarray, scoring: ScoringSplit | None) -> Split:
    scoring = scoring or ("val" if "val" in names else "test")
    counts = Counter(names.tolist())
    if not (counts["train"] and counts[scoring]):
        raise UserError(
            f"{archive.path}: column split holds {', '.join(sorted(set(names)))}; it must name samples to train"
            f" on ({', '.join(SPLITS['train'])}) and samples that score ({', '.join(SPLITS[scoring])})"
        )
    left_out = {name: count for name, count in sorted(counts.items()) if name not in ("train", scoring)}
    return Split(np.flatnonzero(names == "train"), np.flatnonzero(names == scoring), scoring, left_out)


def labelled_split(archive: Archive, scoring: ScoringSplit | None = None) -> tuple[Split, np.ndarray]:
    """The split without the samples that have no label, and the labels of all samples (int64, -1 for none).

    Where the split that would score has no label at all, as a challenge's test images have none, a random quarter of
    the training groups scores, unless `scoring` asks for that split.

    Raises `UserError` for an archive without labels, with fewer than two classes to train on, or with a group (a
    patient, a lesion) in the training split and among those that score: its images would be recognised, and the scores
    too good.
    """
    if not archive.has_column("label"):
        raise UserError(f"{archive.path} has no labels: prepare it with --labels, or use --protocol matching")
    labels = archive.columns(np.arange(archive.num_samples), ("label",))["label"].astype(np.int64)
    split = split_samples(archive, scoring)
    if scoring is None and not (labels[split.val] >= 0).any():
        left_out = split.left_out | {split.name: len(split.val)}
        split = _random_quarter(archive, split.train)._replace(left_out=left_out)
    split = split._replace(train=split.train[labels[split.train] >= 0], val=split.val[labels[split.val] >= 0])
    if len(np.unique(labels[split.train])) < 2 or len(split.val) == 0:
        raise UserError(f"{archive.path}: needs two classes or more in the training split, and samples to score")
    shared = np.isin(groups_of(archive, split.val), groups_of(archive, split.train))
    if shared.any():
        sample = archive.columns(split.val[shared][:1], ("id",))["id"][0]
        raise UserError(
            f"{archive.path}: {shared.sum()} of the {len(split.val)} scoring samples ({sample}, for one) belong to"
            " groups of the training split; correct the column split of the labels, or leave it out, and prepare anew"
        )
    return split, labels


def groups_of(archive: Archive, ids: np.ndarray) -> np.ndarray:
    """Group of each sample (int64 [N]); samples without one are groups of their own."""
    if not archive.has_column("group"):
        return ids
    groups = archive.columns(ids, ("group",))["group"]
    return np.where(groups >= 0, groups, ids + archive.num_samples)


def draw_fraction(
    ids: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    fraction: float,
    seed: int,
    *,
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """Part of the samples `ids` (int64 [N], ascending): of each class's groups those that come nearest to `fraction`.

    labels, groups: int64 [N], of each of them; groups are taken as a whole. What `seed` gives for a smaller fraction is
    part of what it gives for a larger one. classes: their names, for messages. Raises `UserError` if a class would be
    left without samples, or for a fraction that is not above 0 and at most 1.
    """
    require(0 < fraction <= 1, "label fraction", fraction, "above 0 and at most 1")
    strata = strata_of(labels, groups)
    order = random_words(seed, 0, strata.groups, Use.LABEL_FRACTION, 1)[:, 0]
    taken = np.zeros(len(strata.groups), bool)
    for label in np.unique(strata.label):
        members = np.flatnonzero(strata.label == label)
        members = members[np.argsort(order[members], kind="stable")]
        taken[members[: int(fraction * len(members) + 0.5)]] = True
    kept = taken[strata.group]
    for label in np.setdiff1d(labels, labels[kept]):
        size, name = strata.sizes[label], classes[label] if classes else label
        raise UserError(
            f"a label fraction of {fraction:g} leaves class {name} without images: it has {size} group{'s'[: size - 1]}"
            f" to take from; take {min(1, np.ceil(500 / size) / 1000):g} or more"
        )
    return ids[kept]
