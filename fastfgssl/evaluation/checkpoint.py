"""Scores of a checkpoint on an archive: what `fastfgssl evaluate` and `fastfgssl.evaluate` do."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.section import require
from fastfgssl.data.opening import open_archive
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.finetuned import learned_by
from fastfgssl.evaluation.pretrained import Pretrained, build_untrained, load_pretrained
from fastfgssl.evaluation.protocols import Protocol, require_scoring, run_protocol
from fastfgssl.evaluation.report import BatchStatistics, Report
from fastfgssl.evaluation.split import ScoringSplit
from fastfgssl.models import Network
from fastfgssl.models.classifier import ClassifyingNetwork
from fastfgssl.runtime.distributed import device_name, start_world
from fastfgssl.runtime.environment import require_alone
from fastfgssl.runtime.errors import UserError, require_one_of

log = logging.getLogger(__name__)


def evaluate(
    checkpoint: str | Path,
    data: str | Path,
    protocol: Protocol = "matching",
    *,
    cache: str | Path | None = None,
    split: ScoringSplit | None = None,
    trained_on: str | Path | None = None,
    untrained: int | None = None,
    batch_statistics: BatchStatistics = "stored",
    seed: int = 0,
    label_fraction: float = 1.0,
    device: str = "auto",
    batch_size: int = 128,
) -> Report:
    """Scores frozen features of a checkpoint's network on a prepared archive.

    protocol: `matching` needs no labels: how often, among all scoring images, the anchor nearest to a puzzle view is
    that of the same image; `knn` and `linear` need an archive with labels; `finetuned` scores the classifiers that
    fine-tuning has trained, on an archive whose classes they know. data, cache: as `data.path` and `data.cache` of a
    configuration; cache=None takes the checkpoint's. split, batch_statistics, seed, label_fraction: see `run_protocol`.
    trained_on: of finetuned, the archive that the network was fine-tuned on, where `data` is another; None looks for it
    where it was then. untrained: scores a network like the checkpoint's with random weights of this seed instead.
    device: auto, cuda or cpu. Raises `UserError` for a word that is none of these, a file that is no
    checkpoint, an archive that lacks what is needed, or if this process is one of several ranks.
    """
    require_one_of("protocol", protocol, get_args(Protocol))
    require_one_of("batch_statistics", batch_statistics, get_args(BatchStatistics))
    if split is not None:
        require_one_of("split", split, get_args(ScoringSplit))
    require_scoring(protocol, split, batch_statistics)
    if protocol != "finetuned":
        require(trained_on is None, "trained_on", trained_on, "left out for protocols other than finetuned")
    require_alone("an evaluation")
    network = load_pretrained(checkpoint)
    of_weights = {"training": network.config.seed}
    if untrained is not None:
        network = network._replace(model=build_untrained(network.config, untrained), step=0)
        of_weights = {"untrained": untrained}
    if cache is not None:
        config = network.config
        network = network._replace(config=replace(config, data=replace(config.data, cache=str(cache))))
    archive = open_archive(replace(network.config.data, path=str(data)))
    if protocol == "finetuned":
        require_classifier(network.model, checkpoint)
    report = score_network(
        network,
        archive,
        protocol,
        split=split,
        trained_on=trained_on,
        batch_statistics=batch_statistics,
        seed=seed,
        label_fraction=label_fraction,
        device=device,
        batch_size=batch_size,
    )
    return replace(report, seeds=report.seeds | of_weights)


def score_network(
    network: Pretrained,
    archive: Archive,
    protocol: Protocol,
    *,
    split: ScoringSplit | None = None,
    trained_on: str | Path | None = None,
    batch_statistics: BatchStatistics = "stored",
    seed: int = 0,
    label_fraction: float = 1.0,
    device: str = "auto",
    batch_size: int = 128,
) -> Report:
    """Scores frozen features of a network, from a checkpoint or not; arguments as for `evaluate`."""
    learned = learned_by(network, archive, trained_on) if protocol == "finetuned" else None
    with start_world(device) as world:
        model = network.model.to(world.device).to(memory_format=torch.channels_last)
        extractor = FeatureExtractor(model, network.config, archive, world.device, batch_size)
        log.info("scoring on %s", device_name(world))
        report = run_protocol(
            extractor,
            archive,
            protocol,
            batch_statistics=batch_statistics,
            scoring=split,
            seed=seed,
            label_fraction=label_fraction,
            learned=learned,
        )
    if protocol == "finetuned":
        report = replace(report, label_fraction=network.config.data.label_fraction)
    return replace(report, step=network.step)


def require_classifier(model: Network, checkpoint: str | Path) -> None:
    """Raises `UserError` unless a network tells classes apart."""
    if not isinstance(model, ClassifyingNetwork):
        raise UserError(f"{checkpoint}: has no classifier: fine-tune it first, or use --protocol knn")
