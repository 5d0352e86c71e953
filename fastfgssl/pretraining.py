"""Pretraining: an archive, an objective, hooks, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastfgssl.config.schema import Config
from fastfgssl.data.stream import ArchiveStream
from fastfgssl.evaluation.online import OnlineScores
from fastfgssl.runtime.agreement import lost_ranks
from fastfgssl.runtime.distributed import start_world
from fastfgssl.training.hooks import DataWaitWarning, Hook, ViewsPicture
from fastfgssl.training.provenance import Provenance
from fastfgssl.training.run import begin, kept_generators
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
    with start_world(config.train.device) as world, kept_generators(world.device), lost_ranks("starting"):
        config.train.check_world_size(world.size)
        data = ArchiveStream(config, world)
        config, objective, state = begin(config, data, world)
        data.config = config
        data.needs = objective.needs
        beside = [Provenance(), ViewsPicture(), OnlineScores(data.archive), *hooks, DataWaitWarning()]
        everything = [*beside, *make_sinks(config.train.sinks)]
        return fit(config, world, objective, data, everything, state=state, stop_signal=stop_signal)
