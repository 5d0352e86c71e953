"""What every verb does before the loop: an output folder for this job alone, a checkpoint, and the objective."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastfgssl.config.schema import Config
from fastfgssl.data.stream import ArchiveStream
from fastfgssl.objectives import build_objective
from fastfgssl.objectives.base import Objective
from fastfgssl.runtime.agreement import shared_errors
from fastfgssl.runtime.distributed import World, local_main_first
from fastfgssl.runtime.errors import TAKES_NOTHING, UserError
from fastfgssl.runtime.lock import FolderLock, held_folder
from fastfgssl.runtime.memory import memory_errors
from fastfgssl.training.hooks import Hook, Moment, Run
from fastfgssl.training.replay import replay, state_before
from fastfgssl.training.resume import as_begun, find_state, require_same_run
from fastfgssl.training.saving import checkpoints_of, fallback_of, goes_on
from fastfgssl.training.step import TrainingStep
from fastfgssl.training.trainer import Data

log = logging.getLogger(__name__)


class Beginning(NamedTuple):
    config: Config
    """That of the run: a key that it did not know when it began has what it meant then."""
    objective: Objective
    """On the device."""
    state: dict[str, Any] | None
    """The checkpoint to go on from; None for a new run."""


class SoleWriter(Hook):
    """Ends a job whose output folder another one has taken over, before it writes there again."""

    def __init__(self, lock: FolderLock | None) -> None:
        self._lock = lock

    def begin(self, run: Run) -> None:
        self(None)

    def __call__(self, moment: Moment | None) -> None:
        if self._lock is not None:
            self._lock.check()


@contextmanager
def held_output(config: Config, world: World) -> Iterator[SoleWriter]:
    """Holds the output folder for this job, whose first rank has the lock; the hook is to be called before others.

    Raises `UserError` on every rank if another job holds it.
    """
    lock = None
    with ExitStack() as held:
        with shared_errors(world):
            if world.is_main:
                lock = _hold(config, held)
        yield SoleWriter(lock)


def _hold(config: Config, held: ExitStack) -> FolderLock:
    """The lock of the output folder; of its fallback, from which a run goes on, where a full disk takes none."""
    try:
        return held.enter_context(held_folder(Path(config.output)))
    except UserError as error:
        fallback = fallback_of(config)
        if fallback is None or error.errno not in TAKES_NOTHING or not goes_on(config, error):
            raise
        log.warning("%s; %s is held in its place", error, fallback)
        return held.enter_context(held_folder(fallback))


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


def replay_step(config: Config, data: ArchiveStream, world: World, step: int) -> str:
    """Makes step `step` of the run in `config.output` again from a checkpoint, and says where it is not finite.

    Writes nothing. Raises `UserError` where no checkpoint is from before that step, or of another run.
    """
    with shared_errors(world):
        state = state_before(step, checkpoints_of(config), *filter(None, [fallback_of(config)]))
    config, objective = begin_from(config, state, data, world)
    data.config, data.needs, data.writes = config, objective.needs, False
    make_step = TrainingStep(objective, config, world)
    make_step.load_state_dict(state)
    run = Run(
        config=config,
        world=world,
        objective=objective,
        num_samples=data.num_samples,
        is_new=False,
        start=state["step"],
        steps=config.train.num_steps(data.num_samples),
        lr_factor=state.get("lr_factor", 1.0),
    )
    with data.batches(run.start, step) as batches:
        return replay(run, make_step, batches, step)


def kept_generators(device: torch.device) -> AbstractContextManager[None]:
    """Puts torch's global generators, of the CPU and of the device, back as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
