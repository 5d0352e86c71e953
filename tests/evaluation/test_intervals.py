"""What is drawn, and what intervals make of it; how often they are right is in test_coverage.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from fastfgssl.evaluation import resampling
from fastfgssl.evaluation.resampling import Resampling
from fastfgssl.evaluation.scores import paired_differences, score_probabilities, share_interval

CLASSES = ("a", "b")


def weights(drawn: Resampling, count: int = 200) -> np.ndarray:
    """Of each sample in each draw: [M, count]."""
    return np.concatenate(list(drawn.draws(count)), axis=1)[drawn.unit]


def test_groups_are_drawn_whole_within_classes():
    truth = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    groups = np.array([7, 7, 3, 4, 4, 5, 9, 9, 8, 6])
    found = weights(Resampling(truth, groups))
    for group in groups:
        assert (np.ptp(found[groups == group], axis=0) == 0).all()
    for label, members in ((0, [0, 2, 3, 5]), (1, [6, 8, 9])):
        np.testing.assert_allclose(found[members].sum(axis=0), len(members))  # one image of each group
        assert (truth[members] == label).all()
    assert (found.std(axis=1) > 0).all()


def test_a_group_of_several_classes_counts_for_the_rarest_which_never_vanishes():
    truth = np.array([0] * 30 + [0, 0, 1, 1])
    groups = np.array([*range(30), 50, 51, 50, 51])  # both images of class 1 lie in groups that have class 0 too
    found = weights(Resampling(truth, groups))
    assert (found[truth == 1].sum(axis=0) == 2).all()
    np.testing.assert_array_equal(found[30:32], found[32:34])


def test_the_variance_of_draws_is_that_of_the_mean():
    """Drawing n of n would give (n - 1) / n of it: half for two groups."""
    for count in (2, 3, 8):
        values = np.random.default_rng(count).normal(size=count)
        found = weights(Resampling(np.zeros(count, np.int64), np.arange(count)), 4000)
        assert (values @ found / count).var() == pytest.approx(values.var(ddof=1) / count, rel=0.08)


def test_draws_are_the_same_for_every_network_and_differ_by_seed():
    truth, groups = np.arange(20) % 2, np.arange(20)
    first, again, other = (weights(Resampling(truth, groups, seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(first[:, :150], weights(Resampling(truth, groups), 150))


def test_many_groups_are_drawn_in_parts(monkeypatch):
    monkeypatch.setattr(resampling, "_MOST_UNITS", 50)
    groups = np.arange(3000) // 3
    drawn = Resampling(np.arange(3000) // 3 % 2, groups)
    assert drawn.num_units == 100
    assert (np.bincount(drawn.unit) == 30).all()
    values = np.random.default_rng(0).normal(size=1000)[groups]
    assert (values @ weights(drawn, 1000) / 3000).std() == pytest.approx(values.std() / 1000**0.5, rel=0.2)


def certain(guess: np.ndarray) -> np.ndarray:
    return np.eye(2)[guess]


def width(interval: list[float]) -> float:
    return interval[1] - interval[0]


def test_intervals_are_over_groups_not_images():
    truth = np.repeat([0, 1], [800, 200])
    guess = np.where(np.arange(1000) % 4 == 0, 1 - truth, truth)
    found = score_probabilities(truth, certain(guess), np.arange(1000), classes=CLASSES)
    # standard error of the mean of two binomial shares
    expected = 2 * 1.96 * 0.5 * np.sqrt(0.75 * 0.25 / 800 + 0.75 * 0.25 / 200)
    assert width(found["intervals"]["balanced_accuracy"]) == pytest.approx(expected, rel=0.05)
    # nine more images of each patient, all alike, tell nothing more
    truth, guess, groups = (np.repeat(part, 10) for part in (truth, guess, np.arange(1000)))
    repeated = score_probabilities(truth, certain(guess), groups, classes=CLASSES)
    for name, interval in found["intervals"].items():
        np.testing.assert_allclose(repeated["intervals"][name], interval, atol=1e-6, err_msg=name)


def test_no_error_seen_is_no_proof_that_there_is_none():
    truth = np.repeat([0, 1], [50, 6])
    found = score_probabilities(truth, certain(truth), np.arange(56), classes=CLASSES)
    assert found["balanced_accuracy"] == found["macro_auroc"] == 1
    for name, count in (("a", 50), ("b", 6)):  # Wilson's of all that there are, by Student's t
        low = count / (count + student.ppf(0.975, count - 1) ** 2)
        assert found["by_class"][name]["intervals"]["recall"] == pytest.approx([low, 1])
    assert 0.7 < found["intervals"]["balanced_accuracy"][0] < 0.9
    assert found["intervals"]["balanced_accuracy"][1] == pytest.approx(1)


def test_a_class_of_one_group_is_told():
    truth = np.repeat([0, 1], [20, 4])
    guess = np.array([0] * 15 + [1] * 5 + [1, 1, 1, 0])
    groups = np.array([*range(20), 99, 99, 99, 99])
    found = score_probabilities(truth, certain(guess), groups, classes=CLASSES)
    assert found["one_group"] == ["b"]
    assert width(found["by_class"]["b"]["intervals"]["recall"]) > 0.7
    assert width(found["intervals"]["balanced_accuracy"]) > 0.35


def test_a_share_of_hits_has_wilsons_interval():
    hits = np.arange(400) % 10 > 0
    low, high = share_interval(hits, np.arange(400))
    assert (low, high) == pytest.approx((0.8668, 0.9257), abs=0.003)


@pytest.fixture(scope="module")
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Labels of 300 samples, and probabilities [4, 300, 2] of networks of which half of the noise is in common."""
    rng = np.random.default_rng(0)
    truth = np.arange(300) % 2
    logits = 1.5 * truth + rng.normal(size=300) + rng.normal(size=(4, 300))
    share = 1 / (1 + np.exp(0.75 - logits))
    return truth, np.stack([1 - share, share], axis=-1)


def test_what_is_hard_for_both_is_not_in_their_difference(scored):
    truth, networks = scored
    alone = score_probabilities(truth, networks[0], np.arange(300), classes=CLASSES, draws=500)
    found = paired_differences(truth, networks[0], networks[1], np.arange(300), classes=CLASSES, draws=500)
    for name in ("macro_auroc", "brier_score", "auroc/b"):
        assert found[name]["low"] < found[name]["difference"] < found[name]["high"]
    paired = found["macro_auroc"]["high"] - found["macro_auroc"]["low"]
    assert paired < 1.2 * width(alone["intervals"]["macro_auroc"])  # apart it would be 1.41
    same = paired_differences(truth, networks[0], networks[0], np.arange(300), classes=CLASSES, draws=100)
    assert {*same["accuracy"].values()} == {0.0}


def test_seeds_widen_by_what_their_networks_differ(scored):
    truth, networks = scored
    worse = networks.copy()
    worse[1] = 0.5 * networks[1] + 0.5 * networks[1][:, ::-1] * (np.arange(300) % 3 == 0)[:, None]
    alike, unlike = (
        score_probabilities(truth, list(part[:3]), np.arange(300), classes=CLASSES, draws=300)
        for part in (np.stack([networks[0]] * 3), worse)
    )
    single = score_probabilities(truth, networks[0], np.arange(300), classes=CLASSES, draws=300)
    assert "confusion" not in alike
    for name, interval in single["intervals"].items():
        np.testing.assert_allclose(alike["intervals"][name], interval, atol=1e-9, err_msg=name)
    values = [
        score_probabilities(truth, part, np.arange(300), classes=CLASSES, draws=100)["accuracy"] for part in worse
    ]
    assert unlike["accuracy"] == pytest.approx(np.mean(values[:3]))
    assert width(unlike["intervals"]["accuracy"]) > 2 * np.std(values[:3], ddof=1) / 3**0.5 * 2
    apart = paired_differences(truth, list(worse[:3]), networks[3], np.arange(300), classes=CLASSES, draws=300)
    assert apart["accuracy"]["difference"] == pytest.approx(np.mean(values[:3]) - values[3])
