"""The scores of all networks of a comparison under one budget, with intervals and differences, as JSON has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastfgssl.comparison.cost import Cost, mean_cost
from fastfgssl.comparison.scored import FEATURES, Scored
from fastfgssl.evaluation.intervals import Replicates, replicate
from fastfgssl.evaluation.resampling import Resampling
from fastfgssl.evaluation.scores import score_methods
from fastfgssl.runtime.errors import UserError


class Member(NamedTuple):
    """A network of a comparison."""

    objective: str
    seed: int
    steps: int
    cost: Cost | None
    """Of its training; None for one that is not trained."""
    scored: Scored


class Results:
    """Makes results of members that were scored on the same images; what intervals need is made of each member once."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._first: Member | None = None
        self._replicates: dict[tuple[str, int, int, str], Replicates] = {}

    def of(self, members: Mapping[str, Sequence[Member]]) -> dict[str, Any]:
        """`rows`, of each objective's networks and each of `FEATURES` that they have, and `costs` by objective.

        Differences are to the first row: the backbone's features of the first objective.
        """
        rows = {
            _label(name, feature): (name, feature, [self._replicate(run, feature) for run in runs])
            for name, runs in members.items()
            for feature in FEATURES
            if feature in runs[0].scored.predictions.probabilities
        }
        methods = {label: networks for label, (_, _, networks) in rows.items()}
        scores = score_methods(self._truth, self._resampling, methods, classes=self._classes, baseline=next(iter(rows)))
        return {
            "rows": [
                {
                    "label": label,
                    "objective": name,
                    "features": feature,
                    "scores": scores[label],
                    "by_seed": [_of_seed(run, feature) for run in members[name]],
                }
                for label, (name, feature, _) in rows.items()
            ],
            "costs": {
                name: mean_cost(costs)._asdict() | {"by_seed": [cost._asdict() for cost in costs]}
                for name, runs in members.items()
                if (costs := [run.cost for run in runs if run.cost is not None])
            },
        }

    def _replicate(self, member: Member, feature: str) -> Replicates:
        predictions = member.scored.predictions
        if self._first is None:
            self._first, self._truth = member, predictions.truth
            self._resampling = Resampling(predictions.truth, predictions.groups)
        if not np.array_equal(predictions.ids, self._first.scored.predictions.ids):
            raise UserError(
                f"{member.objective} of seed {member.seed} was scored on other images than {self._first.objective}:"
                " some no longer decode; delete the scores-*.json of all runs"
            )
        key = (member.objective, member.seed, member.steps, feature)
        if key not in self._replicates:
            self._replicates[key] = replicate(self._truth, predictions.probabilities[feature], self._resampling)
        return self._replicates[key]


def intervals_over(results: dict[str, Any]) -> str:
    """What the intervals of a comparison are over, as its table and its plot say it: one seed tells of no others."""
    return "groups and seeds" if len(results["seeds"]) > 1 else "groups"


def labels_used(results: dict[str, Any]) -> str:
    """How the table and the plot of a comparison say that only a part of the labels was learned from."""
    share = results["label_fraction"]
    return f", {100 * share:g} % of the labels, drawn by each seed" if share < 1 else ""


def _label(objective: str, feature: str) -> str:
    return objective if feature == FEATURES[0] else f"{objective}, heads"


def _of_seed(run: Member, feature: str) -> dict[str, Any]:
    scores = run.scored.report["results"][feature]
    return {
        "seed": run.seed,
        "steps": run.steps,
        **{metric: scores[metric] for metric in ("balanced_accuracy", "macro_auroc", "accuracy")},
    }
