"""The linear probe: logistic regression on frozen features, its regularisation chosen on the fitting part alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from fastfgssl.runtime.errors import UserError

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates of the inverse regularisation strength C."""
_FOLDS = 3


class Probe(NamedTuple):
    predictions: np.ndarray  # int64 [M]
    strength: float  # the C that was chosen


def linear_probe(fit: np.ndarray, labels: np.ndarray, groups: np.ndarray, queries: np.ndarray) -> Probe:
    """Predicts the labels of queries [M, D] from fitting samples [N, D] with int64 labels [N] and groups [N].

    Features are standardised by the fitting part, classes weighted inversely to their size. C is the one with the best
    balanced accuracy in three-fold cross-validation of the fitting part, no group of which is in two folds. Raises
    `UserError` if there are too few groups for that.
    """
    folds = _folds(labels, groups)

    def score(strength: float) -> float:
        scores = [
            balanced_accuracy_score(
                labels[test], _classifier(strength).fit(fit[train], labels[train]).predict(fit[test])
            )
            for train, test in folds
        ]
        return float(np.mean(scores))

    strength = max(STRENGTHS, key=score)
    return Probe(_classifier(strength).fit(fit, labels).predict(queries), strength)


def _folds(labels: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(fitting rows, testing rows) of each fold, with two classes or more among the fitting ones."""
    groups_of_class = sorted(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    if len(groups_of_class) >= 2 and groups_of_class[-2] >= _FOLDS:
        folds = list(StratifiedGroupKFold(n_splits=_FOLDS).split(labels, labels, groups))
        if all(len(test) and len(np.unique(labels[train])) >= 2 for train, test in folds):
            return folds
    raise UserError(
        f"too few labelled images for the linear probe: {_FOLDS}-fold cross-validation needs {_FOLDS} groups (or images"
        " without a group) or more in each of two classes among those that fit; label more, or use --protocol knn"
    )


def _classifier(strength: float) -> Pipeline:
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=1000, tol=1e-3)
    )
