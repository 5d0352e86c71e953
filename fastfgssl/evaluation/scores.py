"""Scores of predicted labels, with the standard errors that comparisons need."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

_RESAMPLES = 1000


class Scores(NamedTuple):
    accuracy: float
    balanced_accuracy: float  # mean over classes of the share that is found
    balanced_accuracy_se: float  # its standard error over groups drawn again (bootstrap)
    macro_f1: float
    confusion: list[list[int]]  # [true class][predicted class]


def score_labels(truth: np.ndarray, predictions: np.ndarray, groups: np.ndarray, num_classes: int) -> Scores:
    """Scores int64 predictions [M] against int64 labels [M]; classes that `truth` lacks count in no mean.

    groups: int64 [M], which samples belong together (a patient's, a lesion's). They are alike, so the standard error is
    that of other groups, not of other samples: a bootstrap draws whole groups.
    """
    classes = np.arange(num_classes)
    present = np.unique(truth)
    return Scores(
        accuracy=float(accuracy_score(truth, predictions)),
        balanced_accuracy=balanced_accuracy(truth, predictions),
        balanced_accuracy_se=_standard_error(truth, predictions, groups),
        macro_f1=float(f1_score(truth, predictions, labels=present, average="macro", zero_division=0)),
        confusion=confusion_matrix(truth, predictions, labels=classes).tolist(),
    )


def balanced_accuracy(truth: np.ndarray, predictions: np.ndarray) -> float:
    """The mean over classes of the share that is found; classes that `truth` lacks count not."""
    return float(balanced_accuracy_score(truth, predictions))


def _standard_error(truth: np.ndarray, predictions: np.ndarray, groups: np.ndarray) -> float:
    names, group = np.unique(groups, return_inverse=True)
    classes, label = np.unique(truth, return_inverse=True)
    # a row a class and a column a group, in which most groups have few of many classes
    samples, hits = (
        csr_array((counts.astype(float), (label, group)), shape=(len(classes), len(names)))
        for counts in (np.ones(len(truth)), truth == predictions)
    )
    rng = np.random.default_rng(0)
    draws = (np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(_RESAMPLES))
    scores = [_mean_share(hits @ times, samples @ times) for times in draws]
    return float(np.std(scores))


def _mean_share(hits: np.ndarray, samples: np.ndarray) -> float:
    """Balanced accuracy over the classes that were drawn."""
    drawn = samples > 0
    return float(np.mean(hits[drawn] / samples[drawn]))
