"""The protocols: view matching, kNN and linear probe on every kind of frozen features, and fine-tuned classifiers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.section import require
from fastfgssl.evaluation.feature_rows import Rows
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.finetuned import Learned, run_finetuned
from fastfgssl.evaluation.knn import knn_probabilities
from fastfgssl.evaluation.linear_probe import folds_of, linear_probe
from fastfgssl.evaluation.matching import matches
from fastfgssl.evaluation.near_duplicates import Thumbnails, find_overlap
from fastfgssl.evaluation.report import BatchStatistics, Report, classification_report
from fastfgssl.evaluation.scores import share_interval
from fastfgssl.evaluation.split import ScoringSplit, Split, draw_fraction, groups_of, labelled_split, split_samples
from fastfgssl.runtime.errors import UserError

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
    learned: Learned | None = None,
) -> Report:
    """Runs a protocol on the scoring samples of an archive (see split.py), on the extractor's device.

    batch_statistics: "stored" uses those that training left in the batch norms (mean 0 and variance 1 in an untrained
    network), "recomputed" those of the training split, labelled or not. scoring: the split that scores, None for `val`
    or, without it, `test`. seed: of the distortions that view matching compares, of the draw of samples for
    "recomputed", and of the part of the labelled training groups, `label_fraction`, that kNN and the probe learn from.
    learned: what the network was fine-tuned on, which finetuned needs. Raises `UserError` if the archive lacks what the
    protocol needs.
    """
    require_scoring(protocol, scoring, batch_statistics)
    if protocol == "finetuned":
        require(label_fraction == 1, "label_fraction", label_fraction, "1 for finetuned: nothing is learned")
        require(batch_statistics == "stored", "batch_statistics", batch_statistics, "stored for finetuned")
        assert learned is not None, "`learned_by` finds it"
        return run_finetuned(extractor, archive, learned, scoring)
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
            archive=archive.fingerprint,
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
        overlap=find_overlap(found.train, found.val, device=extractor.device),
        chosen=found.chosen,
        label_fraction=label_fraction,
        seeds=seeds,
    )


def require_scoring(protocol: Protocol, scoring: ScoringSplit | None, batch_statistics: BatchStatistics) -> None:
    """Raises `UserError` where every sample scores and a protocol would need others to learn from."""
    if scoring != "all":
        return
    if protocol in ("knn", "linear"):
        raise UserError(
            f"split all leaves {protocol} nothing to learn from, which takes the training split of the same archive:"
            " take split val or test, or the protocol finetuned or matching"
        )
    if batch_statistics == "recomputed":
        raise UserError("split all leaves no training split to recompute batch statistics from: take stored ones")


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
    thumbnails = Thumbnails(archive), Thumbnails(archive)
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
