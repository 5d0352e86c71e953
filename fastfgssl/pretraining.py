"""Pretraining: an archive, an objective, hooks, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from fastfgssl.config.schema import Config
from fastfgssl.data.stream import ArchiveStream
from fastfgssl.evaluation.online import OnlineScores
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.agreement import lost_ranks, shared_errors
from fastfgssl.runtime.distributed import local_main_first, start_world
from fastfgssl.runtime.memory import memory_errors
from fastfgssl.training.hooks import DataWaitWarning, Hook, ViewsPicture
from fastfgssl.training.provenance import Provenance
from fastfgssl.training.resume import as_begun, find_state
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
    with start_world(config.train.device) as world, _kept_generators(world.device), lost_ranks("starting"):
        config.train.check_world_size(world.size)
        data = ArchiveStream(config, world)
        state = find_state(config, data, world)
        config = data.config = as_begun(config, state)
        torch.manual_seed(config.seed)
        # the first downloads weights, the others find them
        with shared_errors(world), local_main_first(world), memory_errors("placing the network"):
            objective = build_objective(config, world, fresh=state is None)
        data.needs = objective.needs
        beside = [Provenance(), ViewsPicture(), OnlineScores(data.archive), *hooks, DataWaitWarning()]
        everything = [*beside, *make_sinks(config.train.sinks)]
        return fit(config, world, objective, data, everything, state=state, stop_signal=stop_signal)


def _kept_generators(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
