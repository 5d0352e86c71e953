"""Metrics of classification, as scikit-learn defines them, from weighted counts: of thousands of draws at once.

Every function takes arrays with any leading dimensions, such as one of draws, and gives one value for each. Weights may
be any numbers that are not negative. Classes that the truth lacks have no value (NaN) and count in no mean.
"""

from __future__ import annotations

import numpy as np

CALIBRATION_BINS = 15
SPECIFICITY = 0.9
"""At which sensitivity is reported."""
_ROUNDING = 1e-9  # of sums of weights, relative


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of correct predictions: float64 [...] of [..., K, K], true class by row, predicted by column."""
    return _divide(_diagonal(confusion).sum(axis=-1), confusion.sum(axis=(-2, -1)))


def recall(confusion: np.ndarray) -> np.ndarray:
    """Share of each class that is found: [..., K]."""
    return _divide(_diagonal(confusion), confusion.sum(axis=-1))


def precision(confusion: np.ndarray) -> np.ndarray:
    """Of what is called a class, the share that is of it: [..., K]; 0 for a class that is never predicted."""
    predicted = confusion.sum(axis=-2)
    found = np.divide(_diagonal(confusion), predicted, out=np.zeros(predicted.shape), where=predicted > 0)
    return np.where(confusion.sum(axis=-1) > 0, found, np.nan)


def f1(confusion: np.ndarray) -> np.ndarray:
    """Harmonic mean of precision and recall: [..., K]."""
    truth, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return np.where(truth > 0, _divide(2 * _diagonal(confusion), truth + predicted), np.nan)


def macro(by_class: np.ndarray) -> np.ndarray:
    """Mean over the classes that have a value: [...] of [..., K]."""
    known = ~np.isnan(by_class)
    return _divide(np.where(known, by_class, 0.0).sum(axis=-1), known.sum(axis=-1))


def quadratic_weighted_kappa(confusion: np.ndarray) -> np.ndarray:
    """Agreement beyond chance, disagreement weighted by the squared distance of the classes: [...].

    For classes with an order, such as grades. Source: J. Cohen, "Weighted kappa", Psychological Bulletin 70, 1968.
    """
    places = np.arange(confusion.shape[-1])
    distance = (places[:, None] - places) ** 2.0
    truth, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    expected = np.einsum("...i,ij,...j->...", truth, distance, predicted)
    observed = (confusion * distance).sum(axis=(-2, -1)) * truth.sum(axis=-1)
    return 1 - _divide(observed, expected)


def auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the share of pairs whose positive scores higher, ties counting half: [...].

    positives, negatives: [..., U], the weight of each kind of sample at each of U distinct scores, ascending.
    """
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    pairs = positives.sum(axis=-1) * negatives.sum(axis=-1)
    return _divide(np.einsum("...u,...u->...", positives, below), pairs)


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Mean over the positives of the precision at the threshold that just finds them: [...]; see `auroc`."""
    found = _at_or_above(positives)
    predicted = found + _at_or_above(negatives)
    precisions = np.divide(found, predicted, out=np.zeros(found.shape), where=predicted > 0)
    return _divide(np.einsum("...u,...u->...", positives, precisions), positives.sum(axis=-1))


def sensitivity_at_specificity(
    positives: np.ndarray, negatives: np.ndarray, specificity: float = SPECIFICITY
) -> np.ndarray:
    """The highest sensitivity of a threshold whose specificity is `specificity` or more: [...]; see `auroc`."""
    total = negatives.sum(axis=-1)
    allowed = _at_or_above(negatives) <= ((1 - specificity + _ROUNDING) * total)[..., None]
    best = np.where(allowed, _at_or_above(positives), 0.0).max(axis=-1)
    return np.where(total > 0, _divide(best, positives.sum(axis=-1)), np.nan)


def squared_errors(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Brier score of each sample, [M]: the sum over classes of the squared error, of two classes the error of one."""
    errors = probabilities - (np.arange(probabilities.shape[1]) == truth[:, None])
    return np.square(errors).sum(axis=1) / (2 if probabilities.shape[1] == 2 else 1)


def calibration_bins(probabilities: np.ndarray) -> np.ndarray:
    """The bin of each sample by the probability of its likeliest class, int64 [M]: bins of equal width."""
    return np.clip(np.ceil(probabilities.max(axis=1) * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)


def calibration_gaps(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Whether each prediction is correct (0, 1), less the probability that it claims: [M]."""
    return (probabilities.argmax(axis=1) == truth) - probabilities.max(axis=1)


def expected_calibration_error(gaps: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Mean distance of what is correct in a bin from what is claimed there: [...].

    gaps: [..., bins], the sum of `calibration_gaps` in each bin; total: [...], of all weights. Source: C. Guo et al.,
    "On calibration of modern neural networks", ICML 2017, with 15 bins.
    """
    return _divide(np.abs(gaps).sum(axis=-1), total)


def _diagonal(confusion: np.ndarray) -> np.ndarray:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _at_or_above(weights: np.ndarray) -> np.ndarray:
    return np.cumsum(weights[..., ::-1], axis=-1)[..., ::-1]


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=np.asarray(b) > 0)
