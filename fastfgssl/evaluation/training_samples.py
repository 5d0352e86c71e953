"""Which labelled samples fine-tuning learns from, and which it validates on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.schema import DataConfig
from fastfgssl.data.philox import Use, random_words, uniform
from fastfgssl.evaluation.split import draw_fraction, groups_of, labelled_split, named_splits
from fastfgssl.runtime.errors import UserError

_VALIDATION_SHARE = 0.25


class TrainingSamples(NamedTuple):
    """Sample numbers, int64, ascending. No group (a patient, a lesion) is on both sides."""

    train: np.ndarray
    validation: np.ndarray
    labels: np.ndarray
    """Of all samples of the archive: int64 [N], -1 for none."""
    name: str
    """Of those that validate."""

    def unvalidated(self, classes: Sequence[str]) -> list[str]:
        """Those of the archive's classes of which no image validates."""
        present = np.unique(self.labels[self.validation])
        return [name for label, name in enumerate(classes) if label not in present]


def training_samples(archive: Archive, config: DataConfig, *, seed: int) -> TrainingSamples:
    """The samples of a fine-tuning: the archive's own `train` and `val`, or as below.

    With `config.folds` the labelled samples that the archive does not keep for testing are cut into folds, whole groups
    with classes spread evenly, one of which validates. Without them, and without a `val`, a quarter of the groups to
    train on validates. Of what is left to train on, `config.label_fraction` is taken: whole groups of each class. All
    follows from `seed`. Raises `UserError` for an archive without labels, for groups on both sides of its own split,
    and where a class would have nothing to be learned from.
    """
    if not archive.has_column("label"):
        raise UserError(f"{archive.path} has no labels: prepare it with --labels, to fine-tune on it")
    names = named_splits(archive)
    if config.folds:
        samples = _folded(archive, names, config, seed)
    elif names is None or "val" in names:
        split, labels = labelled_split(archive, None if names is None else "val")
        samples = TrainingSamples(split.train, split.val, labels, split.name)
    else:
        split, labels = labelled_split(archive)
        samples = TrainingSamples(split.train, split.val, labels, split.name)
        if split.name == "test":  # which is kept for the end; else nothing of it has labels
            keys = groups_of(archive, split.train)
            validates = uniform(random_words(seed, 0, keys, Use.VALIDATION, 1))[:, 0] < _VALIDATION_SHARE
            samples = TrainingSamples(split.train[~validates], split.train[validates], labels, "random quarter")
    _require_classes(archive, samples, "")
    if config.label_fraction < 1:
        groups = groups_of(archive, samples.train)
        of_train = samples.labels[samples.train]
        drawn = draw_fraction(samples.train, of_train, groups, config.label_fraction, seed, classes=archive.classes)
        samples = samples._replace(train=drawn)
        _require_classes(archive, samples, f" with data.label_fraction={config.label_fraction}")
    return samples


def _folded(archive: Archive, names: np.ndarray | None, config: DataConfig, seed: int) -> TrainingSamples:
    ids = np.arange(archive.num_samples)
    labels = archive.columns(ids, ("label",))["label"].astype(np.int64)
    pool = ids[(labels >= 0) & (True if names is None else np.isin(names, ("train", "val")))]
    if not len(pool):
        raise UserError(f"{archive.path}: data.folds needs labelled images outside the test split, and there are none")
    groups = groups_of(archive, pool)
    rest = np.setdiff1d(ids[labels >= 0], pool)
    if len(rest) and np.isin(groups_of(archive, rest), groups).any():
        raise UserError(
            f"{archive.path}: groups of the test split are in the folds too; correct the column split of the labels,"
            " and prepare anew"
        )
    for label in np.unique(labels[pool]):
        count = len(np.unique(groups[labels[pool] == label]))
        if count < config.folds:
            raise UserError(
                f"{archive.path}: class {archive.classes[label]} has {count} group{'s'[: count != 1]}, too few for"
                f" data.folds = {config.folds}: each fold is to have one; take fewer folds"
            )
    from sklearn.model_selection import StratifiedGroupKFold  # a second, as in `scores`

    split = StratifiedGroupKFold(config.folds, shuffle=True, random_state=seed % 2**32).split(
        pool, labels[pool], groups
    )
    train, validation = list(split)[config.fold]
    return TrainingSamples(pool[train], pool[validation], labels, f"fold {config.fold} of {config.folds}")


def _require_classes(archive: Archive, samples: TrainingSamples, why: str) -> None:
    """Raises `UserError` unless every class of the archive can be learned, and two or more validated."""
    present = np.unique(samples.labels[samples.train])
    missing = [name for label, name in enumerate(archive.classes) if label not in present]
    if missing:
        raise UserError(
            f"{archive.path}: class {missing[0]} has no image to train on{why}; label more of it, give it groups of"
            " images on both sides of the split, or leave the class out of the labels"
        )
    if len(np.unique(samples.labels[samples.validation])) < 2:
        raise UserError(
            f"{archive.path}: the images that validate are of fewer than two classes{why}; label more of them, or give"
            " them a column `split`"
        )
