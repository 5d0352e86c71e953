"""Pretraining: an archive, an objective, hooks, and the loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fastfgssl.config.files import config_to_values, list_keys
from fastfgssl.config.schema import Config
from fastfgssl.data.stream import ArchiveStream
from fastfgssl.evaluation.online import OnlineScores
from fastfgssl.runtime.agreement import lost_ranks
from fastfgssl.runtime.distributed import start_world
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.collapse import CollapseAlarm
from fastfgssl.training.cost import CostOfRun
from fastfgssl.training.hooks import DataWaitWarning, Hook, ViewsPicture
from fastfgssl.training.provenance import Provenance
from fastfgssl.training.run import begin, held_output, kept_generators, replay_step
from fastfgssl.training.sinks import make_sinks
from fastfgssl.training.trainer import Outcome, fit


def pretrain(
    config: Config, *, hooks: Sequence[Hook] = (), stop_signal: Callable[[], int | None] = lambda: None
) -> Outcome:
    """Runs, or goes on with, the pretraining that `config` describes, and leaves its results in `config.output`.

    hooks: called beside those that every run has, before they write. stop_signal: asked before each step; a number,
    such as a signal's, ends the run after that step with a checkpoint, from which the same call goes on. Raises
    `UserError` for a configuration that this machine or archive cannot satisfy. Leaves torch's global generators, of
    the CPU and of the device, as they are.
    """
    _require_no_labels(config)
    with (
        start_world(config.train.device) as world,
        world.heartbeats.naming_lost_ranks(),
        kept_generators(world.device),
        lost_ranks("starting"),
    ):
        config.train.check_world_size(world.size)
        data = ArchiveStream(config, world)
        with held_output(config, world) as sole_writer:
            config, objective, state = begin(config, data, world)
            data.config = config
            data.needs = objective.needs
            scores = OnlineScores(data.archive)
            beside = [CostOfRun(), Provenance(), ViewsPicture(), scores, *hooks, DataWaitWarning()]
            alarm = CollapseAlarm(lambda: scores.images)
            everything = [sole_writer, *beside, alarm, *make_sinks(config.train.sinks)]
            return fit(config, world, objective, data, everything, state=state, stop_signal=stop_signal)


def replay(config: Config, step: int) -> str:
    """Makes step `step` of the run in `config.output` again from a checkpoint, and says where it is not finite.

    Writes nothing. Raises `UserError` where no checkpoint is from before that step, or of another run.
    """
    _require_no_labels(config)
    with start_world(config.train.device) as world, kept_generators(world.device), lost_ranks("replaying"):
        config.train.check_world_size(world.size)
        return replay_step(config, ArchiveStream(config, world), world, step)


_OF_FINETUNING = re.compile(
    r"supervised\..*|data\.(label_fraction|folds|fold)|evaluate\.(metric|metric_classes|patience)"
)


def _require_no_labels(config: Config) -> None:
    """Raises `UserError` for what fine-tuning alone does. An objective of one's own may use its keys."""
    family, _, variant = config.objective.partition(".")
    if family == "supervised":
        raise UserError(f"objective = {config.objective}: learns from labels; train it by `fastfgssl finetune`")
    if variant and family != "fgssl":
        return
    values = config_to_values(config)
    for key in list_keys():
        default = list(key.default) if isinstance(key.default, tuple) else key.default
        if _OF_FINETUNING.fullmatch(key.name) and values[key.name] != default:
            raise UserError(f"{key.name} = {values[key.name]!r}: does nothing in pretraining; leave it out")
