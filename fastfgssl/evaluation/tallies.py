"""All metrics of one classifier, under many weightings of its samples: draws of the bootstrap, parts of the jackknife.

Samples that are always weighted alike are summed once, into tables of which every metric is a function; a weighting is
then one product with the tables. So 2,000 draws of a million samples take seconds, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from fastfgssl.evaluation import metrics

Values = dict[str, np.ndarray]
OVERALL = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_precision",
    "macro_auroc",
    "macro_average_precision",
    "macro_sensitivity_at_specificity",
    "quadratic_weighted_kappa",
    "brier_score",
    "expected_calibration_error",
)
"""Balanced accuracy is the macro average of recall."""
BY_CLASS = ("recall", "precision", "f1", "auroc", "average_precision", "sensitivity_at_specificity")
MACRO = {
    "balanced_accuracy": "recall",
    "macro_f1": "f1",
    "macro_precision": "precision",
    "macro_auroc": "auroc",
    "macro_average_precision": "average_precision",
    "macro_sensitivity_at_specificity": "sensitivity_at_specificity",
}
"""Which overall metric is the mean over classes of which."""
_MOST_SCORES = 16384  # of a class that draws tell apart; what is nearer by rank counts as tied


@dataclass(frozen=True)
class Weightings:
    """W weightings of M samples."""

    unit: np.ndarray
    """Which samples are always weighted alike: int64 [M], from 0 on."""
    parts: Callable[[], Iterator[np.ndarray]]
    """Weights of the units, float64 [units, W] in parts; called again for every class."""


def measure(truth: np.ndarray, probabilities: np.ndarray) -> Values:
    """Every metric of int64 labels [M] and probabilities float64 [M, K]: `OVERALL` [] each, `BY_CLASS` [K] each.

    The prediction is the likeliest class. Metrics of curves are one-vs-rest, their mean over classes is the macro
    average. What is not defined, as for a class that `truth` lacks, is NaN.
    """
    alike = Weightings(np.zeros(len(truth), np.int64), lambda: iter([np.ones((1, 1))]))
    return {name: values[0] for name, values in measure_weighted(truth, probabilities, alike, most_scores=None).items()}


def measure_weighted(
    truth: np.ndarray, probabilities: np.ndarray, weightings: Weightings, *, most_scores: int | None = _MOST_SCORES
) -> Values:
    """Every metric under each of W weightings: `OVERALL` [W] each, `BY_CLASS` [W, K] each; see `measure`.

    most_scores: of how many different scores of a class the curves are made at most; None for all.
    """
    found = _of_predictions(truth, probabilities, weightings)
    curves = [
        _of_scores(truth == label, probabilities[:, label], weightings, most_scores)
        for label in range(probabilities.shape[1])
    ]
    for name in ("auroc", "average_precision", "sensitivity_at_specificity"):
        found[name] = np.stack([curve[name] for curve in curves], axis=-1)
    found |= {name: metrics.macro(found[by_class]) for name, by_class in MACRO.items()}
    return {name: found[name] for name in (*OVERALL, *BY_CLASS)}


def _of_predictions(truth: np.ndarray, probabilities: np.ndarray, weightings: Weightings) -> Values:
    count, classes = probabilities.shape
    pairs = classes * classes
    cells = np.concatenate(
        [
            truth * classes + probabilities.argmax(axis=1),
            np.full(count, pairs),
            pairs + 1 + metrics.calibration_bins(probabilities),
        ]
    )
    values = [
        np.ones(count),
        metrics.squared_errors(truth, probabilities),
        metrics.calibration_gaps(truth, probabilities),
    ]
    table = _table(np.concatenate(values), cells, np.tile(weightings.unit, 3), pairs + 1 + metrics.CALIBRATION_BINS)
    parts = []
    for sums in _products(table, weightings):
        confusion = sums[:, :pairs].reshape(-1, classes, classes)
        total = confusion.sum(axis=(1, 2))
        parts.append(
            {
                "accuracy": metrics.accuracy(confusion),
                "recall": metrics.recall(confusion),
                "precision": metrics.precision(confusion),
                "f1": metrics.f1(confusion),
                "quadratic_weighted_kappa": metrics.quadratic_weighted_kappa(confusion),
                "brier_score": sums[:, pairs] / total,
                "expected_calibration_error": metrics.expected_calibration_error(sums[:, pairs + 1 :], total),
            }
        )
    return _joined(parts)


def _of_scores(positive: np.ndarray, scores: np.ndarray, weightings: Weightings, most: int | None) -> Values:
    levels, level = np.unique(scores, return_inverse=True)
    count = len(levels)
    if most is not None and count > most:
        level, count = level * most // count, most
    table = _table(np.ones(len(scores)), level + count * positive, weightings.unit, 2 * count)
    parts = []
    for sums in _products(table, weightings):
        negatives, positives = sums[:, :count], sums[:, count:]
        parts.append(
            {
                "auroc": metrics.auroc(positives, negatives),
                "average_precision": metrics.average_precision(positives, negatives),
                "sensitivity_at_specificity": metrics.sensitivity_at_specificity(positives, negatives),
            }
        )
    return _joined(parts)


def _table(values: np.ndarray, cells: np.ndarray, unit: np.ndarray, count: int) -> csr_array:
    """Sums of `values` in each cell for each unit: [cells, units]."""
    return csr_array((values, (cells, unit)), shape=(count, int(unit.max()) + 1))


def _products(table: csr_array, weightings: Weightings) -> Iterator[np.ndarray]:
    for weights in weightings.parts():
        yield np.ascontiguousarray((table @ weights).T)


def _joined(parts: list[Values]) -> Values:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
