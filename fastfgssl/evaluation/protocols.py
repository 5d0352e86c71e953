"""The protocols on frozen features: view matching, kNN and linear probe, for every kind of feature of a network."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import numpy as np
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.section import require
from fastfgssl.evaluation.feature_rows import Rows
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.knn import knn_probabilities
from fastfgssl.evaluation.linear_probe import folds_of, linear_probe
from fastfgssl.evaluation.matching import matches
from fastfgssl.evaluation.near_duplicates import Thumbnails, find_overlap
from fastfgssl.evaluation.report import BatchStatistics, Report, classification_report
from fastfgssl.evaluation.scores import share_interval
from fastfgssl.evaluation.split import ScoringSplit, Split, draw_fraction, groups_of, labelled_split, split_samples
from fastfgssl.evaluation.training_samples import TrainingSamples
from fastfgssl.runtime.errors import UserError

log = logging.getLogger(__name__)
Protocol = Literal["matching", "knn", "linear", "finetuned"]


def run_protocol(
    extractor: FeatureExtractor,
    archive: Archive,
    protocol: Protocol,
    *,
    batch_statistics: BatchStatistics = "stored",
    scoring: ScoringSplit | None = None,
    seed: int = 0,
    label_fraction: float = 1.0,
    own: TrainingSamples | None = None,
) -> Report:
    """Runs a protocol on the scoring samples of an archive (see split.py), on the extractor's device.

    batch_statistics: "stored" uses those that training left in the batch norms (mean 0 and variance 1 in an untrained
    network), "recomputed" those of the training split, labelled or not. scoring: the split that scores, None for `val`
    or, without it, `test`. seed: of the distortions that view matching compares, of the draw of samples for
    "recomputed", and of the part of the labelled training groups, `label_fraction`, that kNN and the probe learn from.
    own: what the network was fine-tuned on, if that was of this archive. Raises `UserError` if the archive lacks what
    the protocol needs.
    """
    if protocol == "finetuned":
        require(label_fraction == 1, "label_fraction", label_fraction, "1 for finetuned: nothing is learned")
        require(batch_statistics == "stored", "batch_statistics", batch_statistics, "stored for finetuned")
        return _run_finetuned(extractor, archive, scoring, own)
    if protocol == "matching":
        require(label_fraction == 1, "label_fraction", label_fraction, "1 for matching, which uses no labels")
        split = split_samples(archive, scoring)
        _require_two(split.val, archive)
    else:
        split, labels = labelled_split(archive, scoring)
    if batch_statistics == "recomputed":
        extractor.recompute_batch_statistics(split.train, seed=seed)
    seeds = {"protocol": seed}
    if protocol == "matching":
        return Report(
            protocol=protocol,
            batch_statistics=batch_statistics,
            split=split.name,
            left_out=split.left_out,
            fit_samples=0,
            val_samples=len(split.val),
            val_groups=len(np.unique(groups_of(archive, split.val))),
            classes=archive.classes,
            results=_match(extractor, archive, split.val, seed),
            seeds=seeds | {"bootstrap": 0},
        )
    groups = groups_of(archive, split.train)
    taken = draw_fraction(split.train, labels[split.train], groups, label_fraction, seed, classes=archive.classes)
    if protocol == "linear":  # before features are made, which may take hours
        folds_of(labels[taken], groups_of(archive, taken))
    found = _classify(extractor, archive, split._replace(train=taken), labels, protocol)
    return classification_report(
        archive,
        protocol,
        found.split,
        labels,
        found.probabilities,
        batch_statistics=batch_statistics,
        overlap=find_overlap(archive, found.train, found.val, device=extractor.device),
        chosen=found.chosen,
        label_fraction=label_fraction,
        seeds=seeds,
    )


def _run_finetuned(
    extractor: FeatureExtractor, archive: Archive, scoring: ScoringSplit | None, own: TrainingSamples | None
) -> Report:
    """Scores the network's own classifiers: each by itself, as `sum` their prediction together, and a floor: `colour`,
    the linear probe of colour statistics.

    own: what it was fine-tuned and validated on, if that was of this archive.
    """
    if own is not None and scoring is None:
        split, labels = Split(own.train, own.validation, own.name, {}), own.labels
    else:
        split, labels = labelled_split(archive, scoring)
    if own is not None:
        known = np.isin(groups_of(archive, split.val), groups_of(archive, own.train))
        if known.any():
            raise UserError(
                f"{archive.path}: the network was fine-tuned on {known.sum()} of the {len(split.val)} images of split"
                f" {split.name}, or on others of their groups; without --split those score that it did not see"
            )
        split = split._replace(train=own.train)
    thumbnails = Thumbnails(), Thumbnails()
    train_ids, train = extractor.colours(split.train, thumbnails[0])
    val_ids, val = extractor.colours(split.val, thumbnails[1])
    _, probabilities = extractor.classifier_probabilities(val_ids)
    chosen = {}
    groups = groups_of(archive, train_ids)
    try:
        floor = _predict_linear(train, labels[train_ids], groups, val, len(archive.classes), extractor.device)
        probabilities["colour"], chosen["colour"] = floor
    except UserError as error:  # a classifier can be scored where a probe of colours cannot be fitted
        log.info("without the floor of colours: %s", error)
    return classification_report(
        archive,
        "finetuned",
        split._replace(train=train_ids, val=val_ids),
        labels,
        probabilities,
        overlap=find_overlap(archive, *thumbnails, device=extractor.device),
        chosen=chosen,
    )


def _require_two(ids: np.ndarray, archive: Archive) -> None:
    if len(ids) < 2:
        raise UserError(
            f"{archive.path}: matching tells images apart and needs two or more that score and decode, not {len(ids)}"
        )


def _match(extractor: FeatureExtractor, archive: Archive, ids: np.ndarray, seed: int) -> dict[str, dict]:
    views = extractor.views(ids, seed=seed)
    _require_two(views.ids, archive)
    groups = groups_of(archive, views.ids)
    results = {}
    for name in views.anchor:
        hits = matches(views.puzzle[name], views.anchor[name], device=extractor.device)
        chance, interval = 1 / len(views.ids), share_interval(hits, groups)
        results[name] = {"top1": float(hits.mean()), "chance": chance, "intervals": {"top1": interval}}
    return results


class _Found(NamedTuple):
    split: Split  # of what decodes
    probabilities: dict[str, np.ndarray]
    chosen: dict[str, dict]
    train: Thumbnails
    val: Thumbnails


def _classify(
    extractor: FeatureExtractor, archive: Archive, split: Split, labels: np.ndarray, protocol: Protocol
) -> _Found:
    thumbnails = Thumbnails(), Thumbnails()
    train_ids, train = extractor.plain(split.train, thumbnails[0])
    val_ids, val = extractor.plain(split.val, thumbnails[1])
    predict = _predict_knn if protocol == "knn" else _predict_linear
    groups, num_classes = groups_of(archive, train_ids), len(archive.classes)
    found = {
        name: predict(train[name], labels[train_ids], groups, val[name], num_classes, extractor.device)
        for name in train
    }
    return _Found(
        split._replace(train=train_ids, val=val_ids),
        {name: part.probabilities for name, part in found.items()},
        {name: part.chosen for name, part in found.items()},
        *thumbnails,
    )


class _Predicted(NamedTuple):
    probabilities: np.ndarray  # float64 [M, K]
    chosen: dict  # what the protocol chose by itself


def _predict_knn(
    train: Rows, labels: np.ndarray, groups: np.ndarray, queries: Rows, num_classes: int, device: torch.device
) -> _Predicted:
    shares = knn_probabilities(train, torch.from_numpy(labels), queries, num_classes=num_classes, device=device)
    return _Predicted(shares.double().numpy(), {})


def _predict_linear(
    train: Rows, labels: np.ndarray, groups: np.ndarray, queries: Rows, num_classes: int, device: torch.device
) -> _Predicted:
    probe = linear_probe(train, labels, groups, queries, num_classes=num_classes, device=device)
    return _Predicted(probe.probabilities, {"C": probe.strength})
