"""The scores of all networks of a comparison under one budget, with intervals and differences, as JSON has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastfgssl.comparison.cost import Cost, mean_cost
from fastfgssl.comparison.scored import FEATURES, Scored
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


def budget_results(members: Mapping[str, Sequence[Member]], classes: Sequence[str]) -> dict[str, Any]:
    """`rows`, of each objective's networks and each of `FEATURES` that they have, and `costs` by objective.

    Differences are to the first row: the backbone's features of the first objective.
    """
    everyone = [member for runs in members.values() for member in runs]
    first = everyone[0].scored.predictions
    for member in everyone:
        if not np.array_equal(member.scored.predictions.ids, first.ids):
            raise UserError(
                f"{member.objective} of seed {member.seed} was scored on other images than"
                f" {everyone[0].objective}: some no longer decode; delete the scores-*.json of all runs"
            )
    rows = {
        _label(name, feature): (name, feature, [run.scored.predictions.probabilities[feature] for run in runs])
        for name, runs in members.items()
        for feature in FEATURES
        if feature in runs[0].scored.predictions.probabilities
    }
    methods = {label: networks for label, (_, _, networks) in rows.items()}
    scores = score_methods(first.truth, methods, first.groups, classes=classes, baseline=next(iter(rows)))
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


def _label(objective: str, feature: str) -> str:
    return objective if feature == FEATURES[0] else f"{objective}, heads"


def _of_seed(run: Member, feature: str) -> dict[str, Any]:
    scores = run.scored.report["results"][feature]
    return {
        "seed": run.seed,
        "steps": run.steps,
        **{metric: scores[metric] for metric in ("balanced_accuracy", "macro_auroc", "accuracy")},
    }
