"""Metrics are scikit-learn's, under any weights, with ties, and for thousands of weightings at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from fastfgssl.evaluation import metrics, tallies
from fastfgssl.evaluation.scores import floor_scores, score_probabilities
from fastfgssl.evaluation.tallies import Weightings, measure, measure_weighted
from fastfgssl.runtime.errors import UserError


def predicted(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities in tenths, so that scores are tied."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=count)
    votes = rng.multinomial(9, np.full(classes, 1 / classes), size=count) + 1.0 * (np.arange(classes) == truth[:, None])
    return truth, votes / 10


def of_sklearn(truth: np.ndarray, probabilities: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    classes = np.arange(probabilities.shape[1])
    guess, own = probabilities.argmax(axis=1), probabilities.max(axis=1)
    facts = {"labels": classes, "average": None, "zero_division": 0, "sample_weight": weight}
    score = sklearn_metrics
    curves = {"auroc": score.roc_auc_score, "average_precision": score.average_precision_score}

    def sensitivity(label: int) -> float:
        false, found, _ = score.roc_curve(
            truth == label, probabilities[:, label], sample_weight=weight, drop_intermediate=False
        )
        return found[false <= 1 - metrics.SPECIFICITY + 1e-9].max()

    expected = {
        "accuracy": score.accuracy_score(truth, guess, sample_weight=weight),
        "balanced_accuracy": score.balanced_accuracy_score(truth, guess, sample_weight=weight),
        "quadratic_weighted_kappa": score.cohen_kappa_score(
            truth, guess, labels=classes, weights="quadratic", sample_weight=weight
        ),
        "recall": score.recall_score(truth, guess, **facts),
        "precision": score.precision_score(truth, guess, **facts),
        "f1": score.f1_score(truth, guess, **facts),
        "brier_score": score.brier_score_loss(
            truth, probabilities if len(classes) > 2 else probabilities[:, 1], sample_weight=weight
        ),
        "sensitivity_at_specificity": np.array([sensitivity(label) for label in classes]),
    }
    for name, curve in curves.items():
        each = [curve(truth == label, probabilities[:, label], sample_weight=weight) for label in classes]
        expected[name] = np.array(each)
    edges = np.arange(1, metrics.CALIBRATION_BINS + 1) / metrics.CALIBRATION_BINS
    place = np.searchsorted(edges, own, side="left")
    gaps = [weight[place == b] @ ((guess == truth)[place == b] - own[place == b]) for b in range(len(edges))]
    expected["expected_calibration_error"] = np.abs(gaps).sum() / weight.sum()
    return expected | {name: expected[part].mean() for name, part in tallies.MACRO.items()}


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_each_is_that_of_sklearn_for_every_weighting(classes):
    truth, probabilities = predicted(240, classes)
    rng = np.random.default_rng(1)
    weights = np.stack([np.ones(240), rng.integers(4, size=240), rng.exponential(size=240)], axis=1)
    unit = rng.permutation(240)
    alike = Weightings(unit, lambda: iter([weights[:, :2], weights[:, 2:]]))
    found = measure_weighted(truth, probabilities, alike)
    assert found.keys() == {*tallies.OVERALL, *tallies.BY_CLASS}
    for draw in range(3):
        expected = of_sklearn(truth, probabilities, weights[unit, draw].astype(float))
        for name, values in found.items():
            np.testing.assert_allclose(values[draw], expected[name], atol=1e-12, err_msg=f"{name} {draw}")


def test_without_weights_too():
    truth, probabilities = predicted(100, 4)
    expected = of_sklearn(truth, probabilities, np.ones(100))
    for name, value in measure(truth, probabilities).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-12, err_msg=name)


def test_a_class_that_the_truth_lacks_counts_in_no_mean():
    truth = np.array([0] * 8 + [1] * 2)
    probabilities = np.eye(3)[[0] * 6 + [1] * 2 + [1, 2]]
    found = measure(truth, probabilities)
    np.testing.assert_allclose(found["recall"], [6 / 8, 1 / 2, np.nan])
    np.testing.assert_allclose(found["precision"], [1, 1 / 3, np.nan])
    assert found["balanced_accuracy"] == pytest.approx((6 / 8 + 1 / 2) / 2)
    assert np.isnan(found["auroc"][2])
    assert found["macro_auroc"] == pytest.approx(found["auroc"][:2].mean())
    alone = measure(np.zeros(5, np.int64), np.eye(2)[[0] * 5])
    assert (alone["accuracy"], np.isnan(alone["macro_auroc"])) == (1, True)


def test_fewer_scores_than_there_are_change_curves_by_next_to_nothing():
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=4000)
    score = rng.normal(size=4000) + truth
    probabilities = np.stack([-score, score], axis=1)
    one = Weightings(np.zeros(4000, np.int64), lambda: iter([np.ones((1, 1))]))
    exact, coarse = (measure_weighted(truth, probabilities, one, most_scores=most) for most in (None, 500))
    for name in ("auroc", "average_precision", "sensitivity_at_specificity"):
        np.testing.assert_allclose(coarse[name], exact[name], atol=0.005)


def test_the_report_is_plain_numbers():
    truth, probabilities = predicted(60, 3)
    truth[truth == 2] = 0
    scores = score_probabilities(truth, probabilities, np.arange(60) // 2, classes=("a", "b", "c"), draws=100)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert scores["by_class"]["c"]["auroc"] is None
    assert scores["by_class"]["c"]["intervals"]["auroc"] == [None, None]
    assert sum(map(sum, scores["confusion"])) == 60
    assert scores["by_class"]["a"]["images"] == (truth == 0).sum()


def test_the_majority_floor_is_what_the_most_frequent_class_gives():
    floor = floor_scores(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 0]), classes=("a", "b"))
    assert (floor["accuracy"], floor["balanced_accuracy"], floor["macro_auroc"]) == (0.75, 0.5, 0.5)
    assert floor["brier_score"] == pytest.approx(0.75 * 0.25**2 + 0.25 * 0.75**2)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [(np.full((4, 2), np.nan), "no finite number"), (np.ones((3, 2)), r"the shape \(3, 2\), not \(4, 2\)")],
)
def test_probabilities_that_cannot_be_scored_are_one_line(probabilities, message):
    with pytest.raises(UserError, match=message):
        score_probabilities(np.array([0, 1, 0, 1]), probabilities, np.arange(4), classes=("a", "b"))
