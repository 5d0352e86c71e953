"""The three protocols: view matching, kNN and linear probe, each for every kind of feature of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.evaluation.feature_rows import Rows
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.knn import knn_predict
from fastfgssl.evaluation.linear_probe import linear_probe
from fastfgssl.evaluation.matching import matching_accuracy
from fastfgssl.evaluation.scores import Scores, score_labels
from fastfgssl.evaluation.split import ScoringSplit, groups_of, labelled_split, split_samples
from fastfgssl.runtime.errors import UserError

Protocol = Literal["matching", "knn", "linear"]
BatchStatistics = Literal["stored", "recomputed"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a protocol found; `results` is by feature: head 0, head 1, head 2, all, backbone, colour."""

    protocol: Protocol
    batch_statistics: BatchStatistics
    split: str
    """Which samples score: `val` or `test` of the archive's own split, or `random quarter`."""
    left_out: dict[str, int]
    """Samples that neither train nor score, by the split that the archive names for them."""
    fit_samples: int
    """Of the training split; 0 for matching."""
    val_samples: int
    val_groups: int
    """What standard errors are over: groups (patients, lesions) of the scoring samples; one alone is its own."""
    classes: tuple[str, ...]
    results: dict[str, dict]
    step: int = 0
    """Training steps that the weights have seen."""


def run_protocol(
    extractor: FeatureExtractor,
    archive: Archive,
    protocol: Protocol,
    *,
    batch_statistics: BatchStatistics = "stored",
    scoring: ScoringSplit | None = None,
    seed: int = 0,
) -> Report:
    """Runs a protocol on the scoring samples of an archive (see split.py).

    batch_statistics: "stored" uses those that training left in the batch norms (mean 0 and variance 1 in an untrained
    network), "recomputed" those of the training split. scoring: the split that scores, None for `val` or, without it,
    `test`. seed: of the distortions that view matching compares, and of the draw of samples for "recomputed".
    Raises `UserError` if the archive lacks what the protocol needs.
    """
    if protocol == "matching":
        split = split_samples(archive, scoring)
        _require_two(split.val, archive)
    else:
        split, labels = labelled_split(archive, scoring)
    if batch_statistics == "recomputed":
        extractor.recompute_batch_statistics(split.train, seed=seed)
    if protocol == "matching":
        results = _match(extractor, archive, split.val, seed)
    else:
        predict = _predict_knn if protocol == "knn" else _predict_linear
        results = _classify(extractor, archive, split.train, split.val, labels, predict)
    return Report(
        protocol=protocol,
        batch_statistics=batch_statistics,
        split=split.name,
        left_out=split.left_out,
        fit_samples=0 if protocol == "matching" else len(split.train),
        val_samples=len(split.val),
        val_groups=len(np.unique(groups_of(archive, split.val))),
        classes=archive.classes,
        results=results,
    )


def _require_two(ids: np.ndarray, archive: Archive) -> None:
    if len(ids) < 2:
        raise UserError(
            f"{archive.path}: matching tells images apart and needs two or more that score and decode, not {len(ids)}"
        )


def _match(extractor: FeatureExtractor, archive: Archive, ids: np.ndarray, seed: int) -> dict[str, dict]:
    views = extractor.views(ids, seed=seed)
    _require_two(views.ids, archive)
    return {
        name: {"top1": matching_accuracy(views.puzzle[name], views.anchor[name]), "chance": 1 / len(views.ids)}
        for name in views.anchor
    }


_Predict = Callable[[Rows, np.ndarray, np.ndarray, Rows, int], tuple[np.ndarray, dict]]


def _classify(
    extractor: FeatureExtractor,
    archive: Archive,
    train_ids: np.ndarray,
    val_ids: np.ndarray,
    labels: np.ndarray,
    predict: _Predict,
) -> dict[str, dict]:
    train_ids, train = extractor.plain(train_ids)
    val_ids, val = extractor.plain(val_ids)
    groups, val_groups, num_classes = groups_of(archive, train_ids), groups_of(archive, val_ids), len(archive.classes)
    results = {}
    for name in train:
        predictions, chosen = predict(train[name], labels[train_ids], groups, val[name], num_classes)
        scores: Scores = score_labels(labels[val_ids], predictions, val_groups, num_classes)
        results[name] = scores._asdict() | chosen
    return results


def _predict_knn(
    train: Rows, labels: np.ndarray, groups: np.ndarray, queries: Rows, num_classes: int
) -> tuple[np.ndarray, dict]:
    return knn_predict(train, torch.from_numpy(labels), queries, num_classes=num_classes).numpy(), {}


def _predict_linear(
    train: Rows, labels: np.ndarray, groups: np.ndarray, queries: Rows, num_classes: int
) -> tuple[np.ndarray, dict]:
    probe = linear_probe(train, labels, groups, queries)
    return probe.predictions, {"C": probe.strength}
