"""The linear probe: logistic regression on frozen features, its regularisation chosen on the training split alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold

from fastfgssl.evaluation.feature_rows import Rows
from fastfgssl.evaluation.logistic_regression import fit_logistic_regression
from fastfgssl.runtime.errors import UserError

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates of the inverse regularisation strength C."""
_FOLDS = 3


class Probe(NamedTuple):
    predictions: np.ndarray  # int64 [M]
    strength: float  # the C that was chosen


def linear_probe(train: Rows, labels: np.ndarray, groups: np.ndarray, queries: Rows) -> Probe:
    """Predicts the labels of queries [M, D] from training samples [N, D] with int64 labels [N] and groups [N].

    C is the one with the best balanced accuracy in three-fold cross-validation of the training samples, no group of
    which is in two folds. Raises `UserError` if there are too few groups for that.
    """
    folds = _folds(labels, groups)

    def score(strength: float) -> float:
        scores = []
        for held_out in folds:
            classifier = fit_logistic_regression(train, labels, strength, samples=~held_out)
            scores.append(balanced_accuracy_score(labels[held_out], classifier.predict(train)[held_out]))
        return float(np.mean(scores))

    strength = max(STRENGTHS, key=score)
    return Probe(fit_logistic_regression(train, labels, strength).predict(queries), strength)


def _folds(labels: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """The samples that each fold holds out, bool [N]; two classes or more are among the others."""
    groups_of_class = sorted(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    if len(groups_of_class) >= 2 and groups_of_class[-2] >= _FOLDS:
        split = StratifiedGroupKFold(n_splits=_FOLDS).split(labels, labels, groups)
        folds = [np.isin(np.arange(len(labels)), held_out) for _, held_out in split]
        if all(fold.any() and len(np.unique(labels[~fold])) >= 2 for fold in folds):
            return folds
    raise UserError(
        f"too few labelled images for the linear probe: {_FOLDS}-fold cross-validation needs {_FOLDS} groups (or images"
        " without a group) or more in each of two classes of the training split; label more, or use --protocol knn"
    )
