"""Scores of fine-tuned networks over several runs of each start, and how they differ from the first, with intervals.

python tests/helpers/finetuned_scores.py ARCHIVE NAME=RUN,RUN,... NAME=RUN,...    # rows of a Markdown table

The first row is the floor: a linear probe of colour statistics, fitted to the images of each of the first runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import fastfgssl
from fastfgssl.evaluation.report import Report, shown_result
from fastfgssl.evaluation.scores import paired_differences, score_probabilities
from fastfgssl.training.checkpoint import list_checkpoints

METRICS = ("balanced_accuracy", "macro_auroc", "accuracy")


def percent(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def last_checkpoint(run: str) -> Path:
    return list_checkpoints(Path(run) / "checkpoints")[-1]


def row(name: str, reports: list[Report], answer: str, than: list[np.ndarray] | None) -> list[np.ndarray]:
    """Prints a row, and returns the probabilities of each run, [M, K], that it is of."""
    found = [report.predictions for report in reports]
    networks = [predictions.probabilities[answer] for predictions in found]
    truth, groups, classes = found[0].truth, found[0].groups, reports[0].classes
    scores = score_probabilities(truth, networks, groups, classes=classes)
    each = ", ".join(f"{100 * report.results[answer]['balanced_accuracy']:.1f}" for report in reports)
    cells = [percent(scores[metric], *scores["intervals"][metric]) for metric in METRICS]
    difference = ""
    if than is not None:
        differences = paired_differences(truth, networks, than, groups, classes=classes)
        balanced = differences["balanced_accuracy"]
        difference = percent(balanced["difference"], balanced["low"], balanced["high"], sign="+")
    print(f"| {name} | {each} | {' | '.join(cells)} | {difference} |", flush=True)
    return networks


def main(archive: str, starts: list[str]) -> None:
    first: list[np.ndarray] | None = None
    print(f"| start | balanced accuracy of each run | {' | '.join(METRICS)} | balanced accuracy, less the first's |")
    print("|---" * (len(METRICS) + 3) + "|")
    for start in starts:
        name, _, runs = start.partition("=")
        reports = [fastfgssl.evaluate(last_checkpoint(run), archive, "finetuned") for run in runs.split(",")]
        if first is None:
            row("colour statistics", reports, "colour", None)
        networks = row(name, reports, shown_result(reports[0].results), first)
        first = first or networks


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
