"""What a protocol found, with the facts that a reader needs to believe it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.evaluation.near_duplicates import Overlap
from fastfgssl.evaluation.scores import floor_scores, score_probabilities
from fastfgssl.evaluation.split import Split, groups_of
from fastfgssl.models.classifier import SUM

BatchStatistics = Literal["stored", "recomputed"]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the scores of a report are of: for paired differences of two networks on the same samples."""

    ids: np.ndarray
    """Scoring samples, int64 [M]."""
    truth: np.ndarray
    """Their labels, int64 [M]."""
    groups: np.ndarray
    """Their groups, int64 [M]."""
    probabilities: dict[str, np.ndarray]
    """By feature, float64 [M, K]."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a protocol found; `results` is by feature: head 0, head 1, head 2, all, backbone, colour; of classifiers by
    head, `sum`, and colour."""

    protocol: str
    batch_statistics: BatchStatistics
    archive: str
    """Fingerprint of the archive whose samples score."""
    split: str
    """Which samples score: `val` or `test` of the archive's own split, `random quarter`, `fold K of N`, or `all`."""
    left_out: dict[str, int]
    """Samples that neither train nor score, by the split that the archive names for them; see `split.left_out`."""
    fit_archive: str = ""
    """Fingerprint of the archive that was learned from, by the protocol or the fine-tuning; empty for matching."""
    fit_samples: int
    """Images that were learned from; 0 for matching."""
    fit_groups: int = 0
    """Their groups; 0 for matching, and where the archive of the fine-tuning is not there to tell."""
    val_samples: int
    val_groups: int
    """What intervals are over: groups (patients, lesions) of the scoring samples; one alone is its own."""
    classes: tuple[str, ...]
    results: dict[str, dict]
    """Scores as `scores.score_probabilities` gives them; of matching `top1`, `chance` and `intervals`."""
    floors: dict[str, dict] = field(default_factory=dict)
    """Scores that need no network: `majority`, the frequencies of the classes. `colour` is among the results."""
    overlap: Overlap | None = None
    """What the scoring samples share with those that were learned from; None for matching, which learns from none, and
    where the archive of the fine-tuning is not there to tell."""
    label_fraction: float = 1.0
    """Part of the labelled groups of the training split that was used, by the protocol or by the fine-tuning."""
    seeds: dict[str, int] = field(default_factory=dict)
    """Of what is random: `protocol`, the draws of the `bootstrap`, and the network's `training`, or `untrained`."""
    step: int = 0
    """Training steps that the weights have seen."""
    predictions: Predictions | None = field(default=None, repr=False, compare=False)

    def record(self) -> dict:
        """All but the predictions, as JSON has it."""
        record = dataclasses.asdict(dataclasses.replace(self, predictions=None))
        del record["predictions"]
        return record


def shown_result(results: Mapping[str, object]) -> str:
    """Which of the results stands for the network where one is shown: its prediction, or all heads side by side."""
    return next((name for name in (SUM, "all") if name in results), next(iter(results), ""))


def is_external(report: Mapping[str, object]) -> bool:
    """Whether what scores is of another archive than what was learned from; report: as JSON has it."""
    return report.get("fit_archive") not in (None, "", report.get("archive"))


class Fit(NamedTuple):
    """What was learned from."""

    archive: str
    """Fingerprint of its archive."""
    labels: np.ndarray
    """Of N images, int64 [N], in any order."""
    groups: int
    """How many; 0 if nothing tells."""


def classification_report(
    archive: Archive,
    protocol: str,
    split: Split,
    labels: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    *,
    classes: Sequence[str] | None = None,
    fit: Fit | None = None,
    batch_statistics: BatchStatistics = "stored",
    overlap: Overlap | None = None,
    chosen: Mapping[str, dict] | None = None,
    label_fraction: float = 1.0,
    seeds: Mapping[str, int] | None = None,
) -> Report:
    """The report of a protocol that gives each scoring sample probabilities.

    split: the samples that trained and those that were scored, without what does not decode. labels: of all samples of
    the archive, int64. probabilities: float64 [M, K] of each of `split.val`, by the feature or head that they are from.
    classes: the K names; None for the archive's. fit: what was learned from; None for `split.train`. chosen: more
    entries for the results, by the same names.
    """
    classes = archive.classes if classes is None else tuple(classes)
    if fit is None:
        fit = Fit(archive.fingerprint, labels[split.train], len(np.unique(groups_of(archive, split.train))))
    truth, groups = labels[split.val], groups_of(archive, split.val)
    results = {
        name: score_probabilities(truth, values, groups, classes=classes) | dict((chosen or {}).get(name, {}))
        for name, values in probabilities.items()
    }
    return Report(
        protocol=protocol,
        batch_statistics=batch_statistics,
        archive=archive.fingerprint,
        split=split.name,
        left_out=split.left_out,
        fit_archive=fit.archive,
        fit_samples=len(fit.labels),
        fit_groups=fit.groups,
        val_samples=len(split.val),
        val_groups=len(np.unique(groups)),
        classes=classes,
        results=results,
        floors={"majority": floor_scores(truth, fit.labels, classes=classes)},
        overlap=overlap,
        label_fraction=label_fraction,
        seeds={"bootstrap": 0} | dict(seeds or {}),
        predictions=Predictions(ids=split.val, truth=truth, groups=groups, probabilities=dict(probabilities)),
    )
