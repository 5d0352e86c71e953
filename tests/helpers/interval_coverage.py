"""Simulates how often intervals hold what they say, on patients who were never seen.

    python tests/helpers/interval_coverage.py --studies 4000 --draws 2000

A patient has one class and one to four images that are alike; a study draws as many patients of each class anew. What
the intervals are about is the metric over a great many patients. Prints for each metric how often its interval holds
that, and how often the interval of a difference leaves out 0 where two methods are equally good. For comparison:
percentiles of as many draws of all groups.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

sys.path.insert(0, str(Path(__file__).parents[2]))

from fastfgssl.evaluation import metrics
from fastfgssl.evaluation.intervals import Interval, Replicates, differences, intervals
from fastfgssl.evaluation.resampling import Resampling
from fastfgssl.evaluation.tallies import BY_CLASS, MACRO, Values, measure

_AT_A_TIME = 200
_CURVES_AT_A_TIME = 20


class Study(NamedTuple):
    """Patients of each class, and how well a network tells the classes apart."""

    patients: tuple[int, ...]
    quality: float
    """Distance of the classes, in standard deviations of a logit."""
    alike: float
    """Share of that variance which the images of a patient have in common."""


STUDIES = {
    "common, rarer, rare": Study((60, 20, 8), 1.5, 0.6),
    "four small": Study((12, 12, 12, 12), 2.0, 0.6),
    "two": Study((40, 12), 1.2, 0.6),
    "seven, as dermoscopy": Study((100, 50, 20, 15, 12, 10, 8), 2.0, 0.5),
}
HARD = {"few errors": Study((60, 30, 12, 6), 2.5, 0.9)}


class Cohort:
    """The samples of a study, whose truth and patients are the same each time."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.label_of_patient = np.repeat(np.arange(len(study.patients)), study.patients)
        images = 1 + np.arange(len(self.label_of_patient)) % 4
        self.groups = np.repeat(np.arange(len(images)), images)
        self.truth = self.label_of_patient[self.groups]
        self.resampling = Resampling(self.truth, self.groups)
        self.unit_of_patient = np.empty(len(images), np.int64)
        self.unit_of_patient[self.groups] = self.resampling.unit

    def noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Logits [count, M, K] of variance 1."""
        classes, alike = len(self.study.patients), self.study.alike
        of_patient = rng.standard_normal((count, len(self.label_of_patient), classes))[:, self.groups]
        return alike**0.5 * of_patient + (1 - alike) ** 0.5 * rng.standard_normal(of_patient.shape)

    def logits(self, noise: np.ndarray, quality: float | np.ndarray = 0.0) -> np.ndarray:
        """quality: beyond the study's."""
        classes = np.arange(noise.shape[-1])
        return noise + (self.study.quality + quality) * (classes == self.truth[:, None])

    def weights(self, draws: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the patients in each draw and in each part of the jackknife: [D, patients], [J, patients]."""
        parts = self.resampling.draws(draws), self.resampling.jackknife()
        drawn, deleted = (np.concatenate(list(part), axis=1).T[:, self.unit_of_patient] for part in parts)
        return drawn, deleted

    def confusions(self, logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """[D, N, K, K] of logits [N, M, K] and weights of patients [D, patients]."""
        count, _, classes = logits.shape
        patients = len(self.label_of_patient)
        cells = np.arange(count)[:, None] * patients * classes + self.groups * classes + logits.argmax(axis=-1)
        predicted = np.bincount(cells.ravel(), minlength=count * patients * classes).reshape(count, patients, classes)
        found = np.empty((len(weights), count, classes, classes))
        for label in range(classes):
            of_class = self.label_of_patient == label
            flat = predicted[:, of_class].transpose(1, 0, 2).reshape(of_class.sum(), -1)
            found[:, :, label] = (weights[:, of_class] @ flat).reshape(len(weights), count, classes)
        return found

    def population(self) -> Values:
        """Every metric over some ten thousand studies' patients; of curves over some hundred."""
        rng = np.random.default_rng(1)
        logits = self.logits(self.noise(rng, 4 * _AT_A_TIME))
        curves = measure(np.tile(self.truth, len(logits)), softmax(logits.reshape(-1, logits.shape[-1]), axis=1))
        everyone = np.ones((1, len(self.label_of_patient)))
        parts = [self.confusions(self.logits(self.noise(rng, _AT_A_TIME)), everyone).sum(axis=1) for _ in range(50)]
        return curves | {name: values[0] for name, values in of_confusions(np.sum(parts, axis=0)).items()}

    def curves(self, logits: np.ndarray, weights: np.ndarray) -> Values:
        """Metrics of scores, [D, N] each, or [D, N, K]."""
        shares, of_images = softmax(logits, axis=-1), weights[:, self.groups]
        found: dict[str, list[np.ndarray]] = {name: [] for name in CURVES}
        for label in range(logits.shape[-1]):
            order = shares[..., label].argsort(axis=1)
            weighted, positive = of_images[:, order], self.truth[order] == label
            for name, curve in CURVES.items():
                found[name].append(curve(weighted * positive, weighted * ~positive))
        by_class = {name: np.stack(values, axis=-1) for name, values in found.items()}
        return by_class | {f"macro_{name}": metrics.macro(values) for name, values in by_class.items()}


CURVES = {
    "auroc": metrics.auroc,
    "average_precision": metrics.average_precision,
    "sensitivity_at_specificity": metrics.sensitivity_at_specificity,
}


def of_confusions(confusion: np.ndarray) -> Values:
    by_class = {
        "recall": metrics.recall(confusion),
        "f1": metrics.f1(confusion),
        "precision": metrics.precision(confusion),
    }
    macro = {name: metrics.macro(by_class[part]) for name, part in MACRO.items() if part in by_class}
    kappa = metrics.quadratic_weighted_kappa(confusion)
    return by_class | macro | {"accuracy": metrics.accuracy(confusion), "quadratic_weighted_kappa": kappa}


def replicates(cohort: Cohort, logits: np.ndarray, drawn: np.ndarray, deleted: np.ndarray) -> Replicates:
    """Of N studies at once, without curves."""
    everyone = np.ones((1, drawn.shape[1]))
    values, *others = (of_confusions(cohort.confusions(logits, weights)) for weights in (everyone, drawn, deleted))
    return Replicates({name: found[0] for name, found in values.items()}, *others)


def coverage(study: Study, *, studies: int, draws: int, seed: int = 0) -> dict[str, Values]:
    """Share of the studies whose interval holds the population's metric: by way of making it, and by metric."""
    cohort, rng = Cohort(study), np.random.default_rng(seed)
    truth = cohort.population()
    drawn, deleted = cohort.weights(draws)
    naive = _naive(cohort, draws)

    def hits() -> dict[str, Values]:
        logits = cohort.logits(cohort.noise(rng, _AT_A_TIME))
        found = intervals(cohort.resampling, [replicates(cohort, logits, drawn, deleted)])
        percentiles = _percentiles(of_confusions(cohort.confusions(logits, naive)))
        return {"ours": _hits(found, truth), "percentiles": _hits(percentiles, truth)}

    return _means(hits, studies // _AT_A_TIME)


def coverage_of_curves(study: Study, *, studies: int, draws: int, seed: int = 0) -> dict[str, Values]:
    """The same for metrics of scores."""
    cohort, rng = Cohort(study), np.random.default_rng(seed)
    truth = cohort.population()
    drawn, deleted = cohort.weights(draws)
    naive, everyone = _naive(cohort, draws), np.ones((1, drawn.shape[1]))

    def hits() -> dict[str, Values]:
        logits = cohort.logits(cohort.noise(rng, _CURVES_AT_A_TIME))
        values, *others = (cohort.curves(logits, weights) for weights in (everyone, drawn, deleted))
        one = Replicates({name: found[0] for name, found in values.items()}, *others)
        percentiles = _percentiles(cohort.curves(logits, naive))
        return {"ours": _hits(intervals(cohort.resampling, [one]), truth), "percentiles": _hits(percentiles, truth)}

    return _means(hits, studies // _CURVES_AT_A_TIME)


class Methods(NamedTuple):
    """Two methods that are equally good, each with networks of some seeds."""

    seeds: int
    seed_spread: float
    """Standard deviation of a network's quality between seeds of a method."""
    in_common: float = 0.5
    """Share of a logit's variance that all networks have in common: what is hard for one is hard for the others."""


def false_findings(study: Study, methods: Methods, *, studies: int, draws: int, seed: int = 0) -> Values:
    """Share of the studies in which the interval of a difference leaves out 0, by metric."""
    cohort, rng = Cohort(study), np.random.default_rng(seed)
    drawn, deleted = cohort.weights(draws)

    def networks(common: np.ndarray) -> list[Replicates]:
        found = []
        for _ in range(methods.seeds):
            own = cohort.noise(rng, _AT_A_TIME)
            noise = methods.in_common**0.5 * common + (1 - methods.in_common) ** 0.5 * own
            luck = methods.seed_spread * rng.standard_normal((_AT_A_TIME, 1, 1))
            found.append(replicates(cohort, cohort.logits(noise, luck), drawn, deleted))
        return found

    def findings() -> dict[str, Values]:
        common = cohort.noise(rng, _AT_A_TIME)
        found = differences(cohort.resampling, networks(common), networks(common))
        return {"ours": {name: ~_holds(part.low, part.high, 0.0) for name, part in found.items()}}

    return _means(findings, studies // _AT_A_TIME)["ours"]


def _percentiles(draws: Values) -> dict[str, Interval]:
    return {name: Interval(values[0], *np.quantile(values, [0.025, 0.975], axis=0)) for name, values in draws.items()}


def _hits(found: Mapping[str, Interval], truth: Values) -> Values:
    return {name: _holds(part.low, part.high, truth[name]) for name, part in found.items()}


def _holds(low: np.ndarray, high: np.ndarray, truth: np.ndarray | float) -> np.ndarray:
    return (low <= truth + 1e-12) & (high >= truth - 1e-12)


def _naive(cohort: Cohort, draws: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    weights = np.empty((draws, len(cohort.label_of_patient)))
    for label in range(len(cohort.study.patients)):
        of_class = cohort.label_of_patient == label
        count = of_class.sum()
        weights[:, of_class] = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    return weights


def _means(simulate: Callable[[], dict[str, Values]], times: int) -> dict[str, Values]:
    found = [simulate() for _ in range(max(1, times))]
    return {
        way: {name: np.concatenate([part[way][name] for part in found]).mean(axis=0) for name in found[0][way]}
        for way in found[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=2000)
    args = parser.parse_args()
    size = {"studies": args.studies, "draws": args.draws}
    print("share of intervals that hold the metric, in per cent: ours (percentiles)")
    for title, study in (STUDIES | HARD).items():
        print(f"{title}: {study}")
        for found in (coverage(study, **size), coverage_of_curves(study, **size)):
            for name in found["ours"]:
                ours, naive = (np.round(100 * found[way][name], 1) for way in found)
                print(f"    {name:32} {ours} ({naive})", flush=True)
    print("share of differences found that are not there, in per cent")
    for title, study in (STUDIES | HARD).items():
        for methods in (Methods(1, 0.0), Methods(2, 0.3), Methods(3, 0.0), Methods(3, 0.1), Methods(3, 0.3)):
            rates = false_findings(study, methods, **size)
            rates_shown = ", ".join(f"{name} {100 * rates[name]:.1f}" for name in rates if name not in BY_CLASS)
            print(f"{title}, {methods}: {rates_shown}", flush=True)


if __name__ == "__main__":
    main()
