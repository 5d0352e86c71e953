"""Scores of fine-tuned networks over several runs of each start, and how they differ from the first, with intervals.

python tests/helpers/finetuned_scores.py ARCHIVE NAME=RUN,RUN,... NAME=RUN,...    # rows of a Markdown table
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import fastfgssl
from fastfgssl.evaluation.scores import paired_differences, score_probabilities
from fastfgssl.training.checkpoint import list_checkpoints

METRICS = ("balanced_accuracy", "macro_auroc", "accuracy")


def percent(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def last_checkpoint(run: str) -> Path:
    return list_checkpoints(Path(run) / "checkpoints")[-1]


def main(archive: str, starts: list[str]) -> None:
    first: list[np.ndarray] | None = None
    print(f"| start | balanced accuracy of each run | {' | '.join(METRICS)} | balanced accuracy, less the first's |")
    print("|---" * (len(METRICS) + 3) + "|")
    for start in starts:
        name, _, runs = start.partition("=")
        reports = [fastfgssl.evaluate(last_checkpoint(run), archive, "finetuned") for run in runs.split(",")]
        scored, classes = reports[0].predictions, reports[0].classes
        assert scored is not None
        answer = list(scored.probabilities)[-1]  # the sum, where there are several classifiers
        networks = [report.predictions.probabilities[answer] for report in reports if report.predictions is not None]
        scores = score_probabilities(scored.truth, networks, scored.groups, classes=classes)
        each = ", ".join(f"{100 * report.results[answer]['balanced_accuracy']:.1f}" for report in reports)
        cells = [percent(scores[metric], *scores["intervals"][metric]) for metric in METRICS]
        if first is None:
            first, difference = networks, ""
        else:
            found = paired_differences(scored.truth, networks, first, scored.groups, classes=classes)
            balanced = found["balanced_accuracy"]
            difference = percent(balanced["difference"], balanced["low"], balanced["high"], sign="+")
        print(f"| {name} | {each} | " + " | ".join(cells) + f" | {difference} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
