"""Scores of predicted labels, with the standard errors that comparisons need."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

_RESAMPLES = 1000


class Scores(NamedTuple):
    accuracy: float
    balanced_accuracy: float  # mean over classes of the share that is found
    balanced_accuracy_se: float  # its standard error over samples of each class drawn again (bootstrap)
    macro_f1: float
    confusion: list[list[int]]  # [true class][predicted class]


def score_labels(truth: np.ndarray, predictions: np.ndarray, num_classes: int) -> Scores:
    """Scores int64 predictions [M] against int64 labels [M]; classes that `truth` lacks count in no mean."""
    classes = np.arange(num_classes)
    present = np.unique(truth)
    return Scores(
        accuracy=float(accuracy_score(truth, predictions)),
        balanced_accuracy=float(balanced_accuracy_score(truth, predictions)),
        balanced_accuracy_se=_standard_error(truth, predictions),
        macro_f1=float(f1_score(truth, predictions, labels=present, average="macro", zero_division=0)),
        confusion=confusion_matrix(truth, predictions, labels=classes).tolist(),
    )


def _standard_error(truth: np.ndarray, predictions: np.ndarray) -> float:
    rng = np.random.default_rng(0)
    hits = truth == predictions
    recalls = [
        rng.choice(hits[truth == label], size=(_RESAMPLES, int((truth == label).sum()))).mean(axis=1)
        for label in np.unique(truth)
    ]
    return float(np.mean(recalls, axis=0).std())
