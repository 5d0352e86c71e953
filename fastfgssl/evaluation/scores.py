"""Scores of a classifier's probabilities with 95 % intervals, and differences of two: plain numbers for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastfgssl.evaluation.intervals import Interval, Replicates, differences, intervals, replicate
from fastfgssl.evaluation.resampling import DRAWS, Resampling
from fastfgssl.evaluation.tallies import BY_CLASS, OVERALL, measure
from fastfgssl.runtime.errors import UserError

Scores = dict[str, object]


def score_probabilities(
    truth: np.ndarray,
    probabilities: np.ndarray | Sequence[np.ndarray],
    groups: np.ndarray,
    *,
    classes: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> Scores:
    """Every metric of probabilities [M, K] for labels int64 [M], with 95 % intervals over groups.

    probabilities: float64, of one network, or a list of those of one method's seeds: then scores are their means, and
    intervals are over seeds too. groups: int64 [M], which samples belong together (a patient's, a lesion's). classes:
    the K names. seed: of the draws.

    Returns `OVERALL` metrics by name (float), `intervals` (name: [low, high]), `by_class` (name of the class:
    `BY_CLASS` metrics, `intervals`, and how many `images` and `groups` it has), `confusion` (of one network: counts,
    true class by row), and `one_group`, the classes of whose spread a single group tells nothing. What is not defined
    is None. Raises `UserError` for probabilities that are not finite numbers, [M, K].
    """
    networks = _networks(probabilities, len(truth), len(classes))
    resampling = Resampling(truth, groups, seed=seed)
    found = intervals(resampling, [replicate(truth, part, resampling, draws=draws) for part in networks])
    scores = _scores(found, truth, resampling, classes)
    if len(networks) == 1:
        from sklearn.metrics import confusion_matrix  # a second, which a training that scores nothing need not wait

        predictions = networks[0].argmax(axis=1)
        scores["confusion"] = confusion_matrix(truth, predictions, labels=np.arange(len(classes))).tolist()
    return scores


def paired_differences(
    truth: np.ndarray,
    probabilities: np.ndarray | Sequence[np.ndarray],
    baseline: np.ndarray | Sequence[np.ndarray],
    groups: np.ndarray,
    *,
    classes: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """How a method differs from another on the same samples: `OVERALL` metrics, and those of each class.

    Arguments as of `score_probabilities`; each side may be several networks of different seeds, not as many on both.
    Returns by metric, or `metric/class`, `difference` (method less baseline), `low` and `high` of its 95 % interval.
    """
    resampling = Resampling(truth, groups, seed=seed)
    sides: list[list[Replicates]] = [
        [replicate(truth, part, resampling, draws=draws) for part in _networks(side, len(truth), len(classes))]
        for side in (probabilities, baseline)
    ]
    return _differences(differences(resampling, *sides), classes)


def score_methods(
    truth: np.ndarray,
    resampling: Resampling,
    methods: Mapping[str, Sequence[Replicates]],
    *,
    classes: Sequence[str],
    baseline: str,
) -> dict[str, Scores]:
    """Scores of several methods on the same samples, as `score_probabilities` gives them.

    truth: labels int64 [M]. methods: by name, what `replicate` makes of the networks of its seeds under `resampling`.
    All but `baseline`, which is one of them, have `differences` to it too, as `paired_differences` gives them.
    """
    found = {name: _scores(intervals(resampling, runs), truth, resampling, classes) for name, runs in methods.items()}
    for name in methods.keys() - {baseline}:
        found[name]["differences"] = _differences(differences(resampling, methods[name], methods[baseline]), classes)
    return found


def floor_scores(truth: np.ndarray, train_labels: np.ndarray, *, classes: Sequence[str]) -> dict[str, float | None]:
    """`OVERALL` metrics of what always predicts how frequent the classes are among `train_labels`: the majority."""
    shares = np.bincount(train_labels, minlength=len(classes)) / len(train_labels)
    return {name: number(measure(truth, np.tile(shares, (len(truth), 1)))[name]) for name in OVERALL}


def share_interval(hits: np.ndarray, groups: np.ndarray) -> list[float | None]:
    """The 95 % interval over groups, [low, high], of the share of `hits`, bool [M]."""
    one_class = np.zeros(len(hits), np.int64)
    resampling = Resampling(one_class, groups)
    as_probabilities = np.stack([hits, ~hits], axis=1).astype(float)
    return _bounds(intervals(resampling, [replicate(one_class, as_probabilities, resampling)])["accuracy"])


def balanced_accuracy(truth: np.ndarray, predictions: np.ndarray) -> float:
    """The mean over classes of the share that is found; classes that `truth` lacks count not."""
    from sklearn.metrics import recall_score  # balanced_accuracy_score warns of classes that are only predicted

    return float(recall_score(truth, predictions, labels=np.unique(truth), average="macro"))


def number(value: np.ndarray | float) -> float | None:
    """A float for a report; None for NaN, which JSON has not."""
    return None if np.isnan(value) else float(value)


def _scores(found: dict[str, Interval], truth: np.ndarray, resampling: Resampling, classes: Sequence[str]) -> Scores:
    scores: Scores = {name: number(found[name].value) for name in OVERALL}
    scores["intervals"] = {name: _bounds(found[name]) for name in OVERALL}
    images = np.bincount(truth, minlength=len(classes))
    scores["by_class"] = {
        name: {metric: number(found[metric].value[label]) for metric in BY_CLASS}
        | {"intervals": {metric: _bounds(found[metric], label) for metric in BY_CLASS}}
        | {"images": int(images[label]), "groups": resampling.groups_of_class.get(label, 0)}
        for label, name in enumerate(classes)
    }
    scores["one_group"] = [name for label, name in enumerate(classes) if resampling.groups_of_class.get(label) == 1]
    return scores


def _differences(found: dict[str, Interval], classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    listed = {name: _difference(found[name]) for name in OVERALL}
    for metric in BY_CLASS:
        listed |= {f"{metric}/{name}": _difference(found[metric], label) for label, name in enumerate(classes)}
    return listed


def _bounds(interval: Interval, place: int | tuple[()] = ()) -> list[float | None]:
    return [number(interval.low[place]), number(interval.high[place])]


def _difference(interval: Interval, place: int | tuple[()] = ()) -> dict[str, float | None]:
    low, high = _bounds(interval, place)
    return {"difference": number(interval.value[place]), "low": low, "high": high}


def _networks(probabilities: np.ndarray | Sequence[np.ndarray], count: int, classes: int) -> list[np.ndarray]:
    networks = (
        [probabilities] if isinstance(probabilities, np.ndarray) and probabilities.ndim == 2 else [*probabilities]
    )
    for part in networks:
        if part.shape != (count, classes):
            raise UserError(f"probabilities have the shape {part.shape}, not {(count, classes)}: samples, classes")
        if not np.isfinite(part).all():
            raise UserError("probabilities hold what is no finite number: the network's features or weights are broken")
    return networks
