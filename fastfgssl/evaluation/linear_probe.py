"""The linear probe: logistic regression on frozen features, its regularisation chosen on the training split alone."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch

from fastfgssl.evaluation.feature_rows import CPU, Rows
from fastfgssl.evaluation.logistic_regression import fit_logistic_regression
from fastfgssl.evaluation.scores import balanced_accuracy
from fastfgssl.runtime.errors import UserError

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates of the inverse regularisation strength C."""
_FOLDS = 3


class Probe(NamedTuple):
    probabilities: np.ndarray  # float64 [M, K]; 0 for a class that no training sample has
    strength: float  # the C that was chosen

    @property
    def predictions(self) -> np.ndarray:
        """int64 [M]"""
        return self.probabilities.argmax(axis=1)


def linear_probe(
    train: Rows,
    labels: np.ndarray,
    groups: np.ndarray,
    queries: Rows,
    *,
    num_classes: int | None = None,
    device: torch.device = CPU,
) -> Probe:
    """Predicts the labels of queries [M, D] from training samples [N, D] with int64 labels [N] and groups [N].

    num_classes: K, None for as many as `labels` has; device: where products are computed. Classes are weighted as if
    all were equally frequent, which is what the probabilities mean (logistic_regression.py). C is the one with the best
    balanced accuracy in three-fold cross-validation of the training samples, no group of which is in two folds. Raises
    `UserError` if there are too few groups for that.
    """
    folds = folds_of(labels, groups)

    def score(strength: float) -> float:
        scores = []
        for held_out in folds:
            classifier = fit_logistic_regression(train, labels, strength, samples=~held_out, device=device)
            scores.append(balanced_accuracy(labels[held_out], classifier.predict(train)[held_out]))
        return float(np.mean(scores))

    strength = max(STRENGTHS, key=score)
    classifier = fit_logistic_regression(train, labels, strength, device=device)
    probabilities = np.zeros((len(queries), num_classes or int(labels.max()) + 1))
    probabilities[:, classifier.classes] = classifier.probabilities(queries)
    return Probe(probabilities, strength)


def folds_of(labels: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """The samples that each fold holds out, bool [N]; two classes or more are among the others.

    Raises `UserError` if there are too few groups.
    """
    groups_of_class = sorted(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    if len(groups_of_class) >= 2 and groups_of_class[-2] >= _FOLDS:
        from sklearn.model_selection import StratifiedGroupKFold  # a second, as in `scores`

        with warnings.catch_warnings():  # a class may have fewer images than there are folds
            warnings.simplefilter("ignore", UserWarning)
            split = list(StratifiedGroupKFold(n_splits=_FOLDS).split(labels, labels, groups))
        folds = [np.isin(np.arange(len(labels)), held_out) for _, held_out in split]
        if all(fold.any() and len(np.unique(labels[~fold])) >= 2 for fold in folds):
            return folds
    raise UserError(
        f"too few labelled images for the linear probe: {_FOLDS}-fold cross-validation needs {_FOLDS} groups (or images"
        " without a group) or more in each of two classes of the training split; label more, or use --protocol knn"
    )
