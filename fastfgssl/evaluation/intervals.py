"""95 % intervals of metrics, and of differences of two models on the same samples: for patients not yet seen.

Standard errors are those of 2,000 bootstrap draws of whole groups within classes (resampling.py). Percentiles of the
draws are too narrow where a class has few groups, so an interval is made as follows, and a simulation holds it to what
it says (tests/evaluation/test_coverage.py):

- of AUROC and average precision, which compare pairs of images, the jackknife's variance where it is larger: it errs on
  the safe side. B. Efron and C. Stein, "The jackknife estimate of variance", Annals of Statistics 9, 1981.
- t quantiles in place of normal ones, with the degrees of freedom that the classes have together: F. E. Satterthwaite,
  "An approximate distribution of estimates of variance components", Biometrics Bulletin 2, 1946.
- of a metric Wilson's score interval, for as many independent samples as would have its standard error: it is skewed
  where the metric is near a bound, stays within it, and is no point where no error was seen. C. Franco et al.,
  "Comparative study of confidence intervals for proportions in complex sample surveys", Journal of Survey Statistics
  and Methodology 7, 2019.
- of a mean over classes what the intervals of the classes give: G. Y. Zou and A. Donner, "Construction of confidence
  limits about effect measures: a general approach", Statistics in Medicine 27, 2008.
- of a difference the standard error of the draws' difference, in which all that both models find hard alike is gone.
- over seeds of pretraining the variance between their networks, divided by their number, is added to that over groups.
  What networks differ by on these samples alone is in both, which errs on the side of a wider interval: A. B. Owen,
  "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007. To leave it out finds differences that are not
  there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from fastfgssl.evaluation.resampling import DRAWS, Resampling
from fastfgssl.evaluation.tallies import BY_CLASS, MACRO, Values, Weightings, measure, measure_weighted

CONFIDENCE = 0.95
_SCALES = {"quadratic_weighted_kappa": (-1.0, 2.0), "brier_score": (0.0, 2.0)}
_LOGIT = ("auroc", "average_precision", "quadratic_weighted_kappa")
_OF_PAIRS = ("auroc", "average_precision", "macro_auroc", "macro_average_precision")
_NONE = 1e-18  # a variance of rounding


class Interval(NamedTuple):
    """Of a metric, [...], or of each class, [..., K]; NaN where there is none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Replicates(NamedTuple):
    """A network's metrics on the samples, in the bootstrap's draws of them, and in the jackknife's parts of them."""

    values: Values  # by metric [...], or [..., K] of classes; of one network the dots are nothing
    draws: Values  # [D, ...]
    deleted: Values  # [J, ...], without the part that Resampling.deleted_from names


def replicate(
    truth: np.ndarray, probabilities: np.ndarray, resampling: Resampling, *, draws: int = DRAWS
) -> Replicates:
    """Every metric of labels int64 [M] and probabilities float64 [M, K]; see `tallies.measure`."""
    weightings = Weightings(resampling.unit, lambda: chain(resampling.draws(draws), resampling.jackknife()))
    found = measure_weighted(truth, probabilities, weightings)
    return Replicates(
        measure(truth, probabilities),
        {name: values[:draws] for name, values in found.items()},
        {name: values[draws:] for name, values in found.items()},
    )


def intervals(resampling: Resampling, models: Sequence[Replicates]) -> dict[str, Interval]:
    """Each metric's mean over `models`, the networks of one method's seeds, scored on the samples of `resampling`.

    One network alone stands for itself: nothing is added for seeds that were not tried.
    """
    sides = {name: _over_seeds(models, name) for name in models[0].values}
    num_classes = next(side.value.shape[-1] for name, side in sides.items() if name in BY_CLASS)
    groups = np.array([resampling.groups_of_class.get(label, 0) for label in range(num_classes)])
    found = {}
    for name, side in sides.items():
        spread = _spread(name, [side], resampling, groups if name in BY_CLASS else groups.sum())
        if name in MACRO:
            part, of_classes = MACRO[name], sides[MACRO[name]]
            spread_of_classes = _spread(part, [of_classes], resampling, groups)
            reach = _reach(part, of_classes.value, spread_of_classes, spread.quantile[..., None], groups)
            reach = _mean_reach(reach, of_classes)
        else:
            reach = _reach(name, side.value, spread, spread.quantile, groups if name in BY_CLASS else groups.sum())
        found[name] = _within(name, _interval(side.value, reach, spread))
    return found


def differences(
    resampling: Resampling, models: Sequence[Replicates], baselines: Sequence[Replicates]
) -> dict[str, Interval]:
    """Each metric's mean over `models` less that over `baselines`, networks of two methods on the same samples.

    The seeds of the two need be neither as many nor the same: what two methods draw from a seed has nothing in common.
    """
    found = {}
    for name in models[0].values:
        sides = [_over_seeds(models, name), _over_seeds(baselines, name)]
        spread = _spread(name, sides, resampling, np.array(resampling.num_units))
        reach = spread.quantile * np.sqrt(spread.groups)
        found[name] = _interval(sides[0].value - sides[1].value, _Reach(reach, reach), spread)
    return found


class _Side(NamedTuple):
    """The mean over the seeds of one method."""

    value: np.ndarray  # [] or [K]
    draws: np.ndarray  # [D, ...]
    deleted: np.ndarray  # [J, ...]
    variance: np.ndarray  # of the mean, for its choice of seeds; 0 of one seed alone
    seeds: int


class _Spread(NamedTuple):
    groups: np.ndarray  # variance over groups
    seeds: np.ndarray  # variance over seeds
    quantile: np.ndarray  # of Student's t: how many standard errors an interval reaches


class _Reach(NamedTuple):
    below: np.ndarray
    above: np.ndarray


def _over_seeds(runs: Sequence[Replicates], name: str) -> _Side:
    values = np.stack([run.values[name] for run in runs])
    draws, deleted = (np.mean([part[name] for part in parts], axis=0) for parts in list(zip(*runs, strict=True))[1:])
    variance = values.var(axis=0, ddof=1) / len(runs) if len(runs) > 1 else np.zeros(values.shape[1:])
    return _Side(values.mean(axis=0), draws, deleted, variance, len(runs))


def _spread(name: str, sides: Sequence[_Side], resampling: Resampling, groups: np.ndarray) -> _Spread:
    """Of a method, or of the difference of two; groups: of the metric, for where no variance tells how many count."""
    of_pairs = name in _OF_PAIRS
    draws = sides[0].draws - (sides[1].draws if len(sides) > 1 else 0)
    deleted = sides[0].deleted - (sides[1].deleted if len(sides) > 1 else 0)
    variance = _variance(draws)
    strata, parts = np.unique(resampling.deleted_from, return_counts=True)
    shares = [_variance(deleted[resampling.deleted_from == stratum]) for stratum in strata]
    shares = [share * (count - 1) ** 2 / count for share, count in zip(shares, parts, strict=True)]
    freedom = _satterthwaite(shares, [*(parts - 1)], groups - 1)
    if of_pairs:
        # of parts of several groups the variance is known but roughly: what it says by chance is no reason for more
        rough = zip(shares, parts, resampling.is_parted[strata], strict=True)
        chance = np.sqrt(sum((2 * share**2 / (count - 1) for share, count, parted in rough if parted), 0 * variance))
        variance = np.maximum(variance, sum(shares, 0 * variance) - 2 * chance)
    seeds = [side.variance for side in sides if side.seeds > 1]
    of_seeds = [np.full(variance.shape, side.seeds - 1) for side in sides if side.seeds > 1]
    freedom = _satterthwaite([variance, *seeds], [freedom, *of_seeds], freedom)
    return _Spread(variance, sum(seeds, np.zeros(variance.shape)), student.ppf((1 + CONFIDENCE) / 2, freedom))


def _variance(draws: np.ndarray) -> np.ndarray:
    """Over those of [D, ...] in which the metric is defined, if most are: [...]."""
    known = ~np.isnan(draws)
    count = known.sum(axis=0)
    mean = np.where(known, draws, 0.0).sum(axis=0) / np.maximum(count, 1)
    squares = np.square(np.where(known, draws - mean, 0.0)).sum(axis=0)
    return np.where(2 * count > len(draws), squares / np.maximum(count - 1, 1), np.nan)


def _satterthwaite(
    variances: Sequence[np.ndarray], freedoms: Sequence[np.ndarray | int], without: np.ndarray
) -> np.ndarray:
    """Degrees of freedom of the sum of `variances`; `without`, but 1 at least, where all of them are 0."""
    total = np.sum(variances, axis=0)
    spread = sum((variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True)), 0 * total)
    return np.divide(total**2, spread, out=np.array(np.maximum(without, 1) + 0 * total, float), where=spread > 0)


def _interval(value: np.ndarray, reach: _Reach, spread: _Spread) -> Interval:
    seeds = spread.quantile**2 * spread.seeds
    return Interval(value, value - np.sqrt(reach.below**2 + seeds), value + np.sqrt(reach.above**2 + seeds))


def _within(name: str, interval: Interval) -> Interval:
    """Of what a metric can be: the part for seeds, few of which reach far, knows no bounds."""
    lowest, width = _SCALES.get(name, (0.0, 1.0))
    return Interval(interval.value, np.maximum(interval.low, lowest), np.minimum(interval.high, lowest + width))


def _reach(name: str, value: np.ndarray, spread: _Spread, quantile: np.ndarray, groups: np.ndarray) -> _Reach:
    """groups: how many samples count where no variance was seen, as of a class without errors or of a single group."""
    lowest, width = _SCALES.get(name, (0.0, 1.0))
    share, variance = (value - lowest) / width, spread.groups / width**2
    binomial = share * (1 - share)
    seen = (variance > _NONE) & (binomial > _NONE) & (groups > 1)
    samples = np.divide(binomial, variance, out=np.array(groups + 0 * share, float), where=seen)
    centre = (share + quantile**2 / (2 * samples)) / (1 + quantile**2 / samples)
    reach = quantile * np.sqrt(binomial / samples + quantile**2 / (4 * samples**2)) / (1 + quantile**2 / samples)
    low, high = centre - reach, centre + reach
    if name in _LOGIT:
        # of the metric's odds, which a standard error divides or multiplies by the same
        factor = np.exp(quantile * np.sqrt(variance) / np.where(seen, binomial, np.inf))
        low = np.where(seen, share / (share + (1 - share) * factor), low)
        high = np.where(seen, share / (share + (1 - share) / factor), high)
    return _Reach(width * (share - low), width * (high - share))


def _mean_reach(reach: _Reach, classes: _Side) -> _Reach:
    """Of the mean over the classes that have a value: [...] of [..., K]."""
    known = ~np.isnan(classes.value)
    draws = np.nan_to_num(classes.draws - np.nanmean(np.where(known, classes.draws, 0.0), axis=0))
    size = np.sqrt(np.square(draws).sum(axis=0))
    draws = np.divide(draws, size, out=np.zeros(draws.shape), where=size > _NONE)
    correlation = np.einsum("d...i,d...j->...ij", draws, draws, optimize=True)
    diagonal = np.arange(correlation.shape[-1])
    correlation[..., diagonal, diagonal] = 1

    def joint(of_classes: np.ndarray) -> np.ndarray:
        part = np.where(known, of_classes, 0.0) / np.maximum(known.sum(axis=-1, keepdims=True), 1)
        return np.sqrt(np.maximum(np.einsum("...i,...ij,...j->...", part, correlation, part), 0))

    return _Reach(joint(reach.below), joint(reach.above))
