"""What every verb does before the loop: a checkpoint to go on from, and the objective."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from fastfgssl.config.schema import Config
from fastfgssl.objectives import build_objective
from fastfgssl.objectives.base import Objective
from fastfgssl.runtime.agreement import shared_errors
from fastfgssl.runtime.distributed import World, local_main_first
from fastfgssl.runtime.memory import memory_errors
from fastfgssl.training.resume import as_begun, find_state, require_same_run
from fastfgssl.training.trainer import Data


class Beginning(NamedTuple):
    config: Config
    """That of the run: a key that it did not know when it began has what it meant then."""
    objective: Objective
    """On the device."""
    state: dict[str, Any] | None
    """The checkpoint to go on from; None for a new run."""


def begin(config: Config, data: Data, world: World) -> Beginning:
    """What a run that `config` describes is begun with, or goes on with.

    Seeds torch's global generator. Raises `UserError` on every rank for what cannot be built, or is of another run.
    """
    state = find_state(config, data, world)
    config, objective = begin_from(config, state, data, world)
    return Beginning(config, objective, state)


def begin_from(config: Config, state: dict[str, Any] | None, data: Data, world: World) -> tuple[Config, Objective]:
    """What a run goes on with from a checkpoint of its own, or is begun with. Seeds torch's global generator."""
    config = as_begun(config, state)
    if state is not None:
        require_same_run(state, config, data)
    torch.manual_seed(config.seed)
    # the first downloads weights, the others find them
    with shared_errors(world), local_main_first(world), memory_errors("placing the network"):
        return config, build_objective(config, world, fresh=state is None)


def kept_generators(device: torch.device) -> AbstractContextManager[None]:
    """Puts torch's global generators, of the CPU and of the device, back as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
