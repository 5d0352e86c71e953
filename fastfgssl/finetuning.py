"""Fine-tuning: labelled images, a classifier on a network that knows something already, and the same loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.config.schema import Config
from fastfgssl.data.opening import open_archive
from fastfgssl.data.order import BalancedOrder, Stream, SubsetOrder
from fastfgssl.data.stream import ArchiveStream
from fastfgssl.evaluation.training_samples import TrainingSamples, training_samples
from fastfgssl.evaluation.validation import Validation
from fastfgssl.runtime.agreement import lost_ranks, shared_errors
from fastfgssl.runtime.distributed import World, start_world
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.cost import CostOfRun
from fastfgssl.training.hooks import DataWaitWarning, Hook, ViewsPicture
from fastfgssl.training.provenance import Provenance
from fastfgssl.training.run import begin, held_output, kept_generators, replay_step
from fastfgssl.training.sinks import make_sinks
from fastfgssl.training.trainer import Outcome, fit


def finetune(
    config: Config, *, hooks: Sequence[Hook] = (), stop_signal: Callable[[], int | None] = lambda: None
) -> Outcome:
    """Runs, or goes on with, the fine-tuning that `config` describes, and leaves its results in `config.output`.

    `config.objective` is supervised.progressive, supervised.joint or supervised.plain; `config.model.weights` says what
    it starts from. The weights that did best on the validation images are kept as checkpoints/best.pt. hooks,
    stop_signal, and what it raises: as for `pretrain`.
    """
    _require_labels(config)
    with (
        start_world(config.train.device) as world,
        world.heartbeats.naming_lost_ranks(),
        kept_generators(world.device),
        lost_ranks("starting"),
    ):
        config, samples, data = _labelled(config, world)
        archive = data.archive
        with held_output(config, world) as sole_writer:
            config, objective, state = begin(config, data, world)
            data.config = config
            data.needs = objective.needs
            beside = [CostOfRun(), Provenance(), ViewsPicture(), Validation(archive, samples), *hooks]
            everything = [sole_writer, *beside, DataWaitWarning(), *make_sinks(config.train.sinks)]
            return fit(config, world, objective, data, everything, state=state, stop_signal=stop_signal)


def replay(config: Config, step: int) -> str:
    """Makes step `step` of the fine-tuning in `config.output` again; see `fastfgssl.pretraining.replay`."""
    _require_labels(config)
    with start_world(config.train.device) as world, kept_generators(world.device), lost_ranks("replaying"):
        config, _, data = _labelled(config, world)
        return replay_step(config, data, world, step)


def _require_labels(config: Config) -> None:
    if not config.objective.startswith("supervised."):
        raise UserError(
            f"objective = {config.objective!r}: fine-tuning takes supervised.progressive, supervised.joint or"
            " supervised.plain; `fastfgssl train` takes the others"
        )


def _labelled(config: Config, world: World) -> tuple[Config, TrainingSamples, ArchiveStream]:
    """`config` with the archive's classes, the samples that train and validate, and the stream of the former."""
    config.train.check_world_size(world.size)
    with shared_errors(world):
        archive = open_archive(config.data)
        samples = training_samples(archive, config.data, seed=config.seed)
        config = with_classes(config, archive, samples)
    return config, samples, ArchiveStream(config, world, lambda archive: _stream(config, archive, samples))


def with_classes(config: Config, archive: Archive, samples: TrainingSamples) -> Config:
    """`config` with the archive's classes, and how many of the training samples each has."""
    counts = np.bincount(samples.labels[samples.train], minlength=len(archive.classes))
    known = config.supervised.classes
    if known and known != archive.classes:
        raise UserError(
            f"supervised.classes = {', '.join(known)}: {archive.path} has {', '.join(archive.classes)}; leave the key"
            " out, or take the archive that it was made for"
        )
    validated = [archive.classes[label] for label in np.unique(samples.labels[samples.validation])]
    unknown = [name for name in config.evaluate.metric_classes if name not in validated]
    if unknown:
        raise UserError(
            f"evaluate.metric_classes: no image that validates is of class {unknown[0]!r}, only of"
            f" {', '.join(validated)}"
        )
    return replace(
        config, supervised=replace(config.supervised, classes=archive.classes, class_counts=tuple(counts.tolist()))
    )


def _stream(config: Config, archive: Archive, samples: TrainingSamples) -> Stream:
    sizes, seed, window = archive.shard_sizes, config.seed, config.data.window
    if config.supervised.balance == "sampling":
        return BalancedOrder(samples.train, samples.labels[samples.train], sizes, seed=seed, window=window)
    return SubsetOrder(samples.train, sizes, seed=seed, window=window)
