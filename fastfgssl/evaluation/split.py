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

ScoringSplit = Literal["val", "test", "all"]
_VAL_SHARE = 0.25


class Split(NamedTuple):
    """Sample numbers, int64, ascending, of the training split and of those that score."""

    train: np.ndarray
    val: np.ndarray
    name: str
    """Of the scoring samples: `val` or `test`, as the archive has it, `random quarter`, or `all`."""
    left_out: dict[str, int]
    """Samples that are neither; see `left_out`."""


def split_samples(archive: Archive, scoring: ScoringSplit | None = None, *, trains: bool = True) -> Split:
    """The archive's own split (labels CSV with a `split` column), else a random quarter of its groups scores.

    scoring: the split that scores; None takes `val`, or `test` in an archive without `val`; with `all` every sample
    scores, and none trains. trains: whether there must be samples to train on. Without groups every sample is its own.
    The random split is the same for every run and network. Raises `UserError` if the archive's split has no samples to
    train on, or none that score.
    """
    ids = np.arange(archive.num_samples)
    if scoring == "all":
        return Split(ids[:0], ids, "all", {})
    names = named_splits(archive)
    if names is None:
        if scoring is not None:
            or_all = "" if trains else ", or take --split all"
            raise UserError(
                f"{archive.path} names no splits: prepare it with a column `split`, or leave out --split{or_all}"
            )
        return _random_quarter(archive, ids)
    split = _own_split(archive, names, scoring, trains=trains)
    return split._replace(left_out=left_out(archive, np.concatenate([split.train, split.val])))


def left_out(archive: Archive, used: np.ndarray, labels: np.ndarray | None = None) -> dict[str, int]:
    """How many samples are not among `used` (int64), by the split that the archive names for them.

    labels: of all samples, int64, -1 for none; what lacks one in a split that is used counts as `no label`.
    """
    names = named_splits(archive)
    if names is None:
        names = np.full(archive.num_samples, _standard_name(None))
    if labels is not None:
        names = np.where((labels < 0) & np.isin(names, names[used]), "no label", names)
    rest = np.delete(names, used)
    return dict(sorted(Counter(rest.tolist()).items()))


def _random_quarter(archive: Archive, ids: np.ndarray) -> Split:
    """`ids` (int64 [M]), of which a quarter of the groups scores."""
    all_ids = np.arange(archive.num_samples)
    groups = archive.columns(all_ids, ("group",))["group"] if archive.has_column("group") else all_ids
    # a sample without a group is one of its own, told apart from the others by its number
    keys = np.where(groups >= 0, groups, all_ids + groups.max() + 1)[ids]
    scores = uniform(random_words(0, 0, keys, Use.SPLIT, 1))[:, 0] < _VAL_SHARE
    return Split(ids[~scores], ids[scores], "random quarter", {})


def named_splits(archive: Archive) -> np.ndarray | None:
    """For each sample the split that the archive names, as `SPLITS` has it; None if it names none."""
    if not archive.has_column("split"):
        return None
    written = archive.columns(np.arange(archive.num_samples), ("split",))["split"]
    standard = {name: _standard_name(name) for name in set(written)}  # of a million samples a few
    return np.array([standard[name] for name in written]) if standard.keys() - {None} else None


def _standard_name(written: str | None) -> str:
    return "no split" if written is None else standard_split(written) or written.strip()


def _own_split(archive: Archive, names: np.ndarray, scoring: ScoringSplit | None, *, trains: bool) -> Split:
    scoring = scoring or ("val" if "val" in names else "test")
    train, val = (np.flatnonzero(names == name) for name in ("train", scoring))
    if not len(val) or (trains and not len(train)):
        to_train = f"samples to train on ({', '.join(SPLITS['train'])}) and " if trains else ""
        raise UserError(
            f"{archive.path}: column split holds {', '.join(sorted(set(names)))}; it must name {to_train}samples that"
            f" score ({', '.join(SPLITS[scoring])}){'' if trains else ', or take --split all'}"
        )
    return Split(train, val, scoring, {})


def labelled_split(archive: Archive, scoring: ScoringSplit | None = None) -> tuple[Split, np.ndarray]:
    """The split without the samples that have no label, and the labels of all samples (int64, -1 for none).

    Where the split that would score has no label at all, as a challenge's test images have none, a random quarter of
    the training groups scores, unless `scoring` asks for that split.

    Raises `UserError` for an archive without labels, with fewer than two classes to train on, or with a group (a
    patient, a lesion) in the training split and among those that score: its images would be recognised, and the scores
    too good.
    """
    labels = _labels(archive)
    split = _labelled(archive, labels, scoring, trains=True)
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


def scoring_samples(
    archive: Archive, classes: Sequence[str], scoring: ScoringSplit | None = None
) -> tuple[Split, np.ndarray]:
    """The labelled samples that score a network which learns nothing from them, and the labels of all samples.

    classes: those that the network tells apart, whose numbers the labels are (int64, -1 for none), whatever the archive
    calls first. scoring: as of `labelled_split`, or `all`. `train` of the split is empty. Raises `UserError` for an
    archive without labels, with images of a class that is none of `classes`, or without a labelled sample that scores.
    """
    labels = _labels(archive)
    images = np.bincount(labels[labels >= 0], minlength=len(archive.classes))
    unknown = [
        f"{name} ({count} image{'s'[: count != 1]})"
        for name, count in zip(archive.classes, images.tolist(), strict=True)
        if count and name not in classes
    ]
    if unknown:
        raise UserError(
            f"{archive.path}: the network does not know class {', '.join(unknown)}, it tells {', '.join(classes)}"
            " apart: call classes in the labels as it does, or leave such images without a label, and prepare anew"
        )
    number = {name: place for place, name in enumerate(classes)}
    labels = np.array([*(number.get(name, -1) for name in archive.classes), -1])[labels]  # the last for no label
    split = _labelled(archive, labels, scoring, trains=False)
    if not len(split.val):
        raise UserError(f"{archive.path}: no image of split {split.name} has a label")
    if scoring == "all":  # a label is all that the others can lack
        unlabelled = archive.num_samples - len(split.val)
        return split._replace(left_out={"no label": unlabelled} if unlabelled else {}), labels
    return split._replace(train=split.train[:0], left_out=left_out(archive, split.val, labels)), labels


def _labels(archive: Archive) -> np.ndarray:
    if not archive.has_column("label"):
        raise UserError(f"{archive.path} has no labels: prepare it with --labels, or use --protocol matching")
    return archive.columns(np.arange(archive.num_samples), ("label",))["label"].astype(np.int64)


def _labelled(archive: Archive, labels: np.ndarray, scoring: ScoringSplit | None, *, trains: bool) -> Split:
    split = split_samples(archive, scoring, trains=trains)
    if scoring is None and len(split.train) and not (labels[split.val] >= 0).any():
        split = _random_quarter(archive, split.train)
    train, val = (ids[labels[ids] >= 0] for ids in (split.train, split.val))
    return Split(train, val, split.name, left_out(archive, np.concatenate([train, val]), labels))


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
