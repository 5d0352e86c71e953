"""The loop: batches in, steps made, reported and saved. One for every objective; it names none."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from fastfgssl.config.files import config_to_values
from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch
from fastfgssl.objectives.base import Objective
from fastfgssl.runtime.agreement import SharedFlag, lost_ranks, on_this_rank, shared_errors
from fastfgssl.runtime.distributed import World, device_name, set_timeout
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import checkpoint_path
from fastfgssl.training.hooks import Hook, Moment, Run
from fastfgssl.training.metrics import Clock, read_logs
from fastfgssl.training.nonfinite import Diverged, NonfiniteSteps, remedy, require_finite
from fastfgssl.training.plan import is_frozen, set_rates, warn_of_lengths
from fastfgssl.training.replay import diagnose
from fastfgssl.training.reporter import Reporter, epoch_of
from fastfgssl.training.saving import checkpoints_of, fallback_of, find_newest, save
from fastfgssl.training.schedule import learning_rates
from fastfgssl.training.step import TrainingStep

log = logging.getLogger(__name__)


_UNFIT = 1 << 16  # what ranks tell each other of data that are not to be used further: above the signals
_LOWER_RATE = 0.1  # of the learning rate, for a run that has diverged once


class Outcome(NamedTuple):
    steps_done: int
    stopped_by: int | None
    """The signal, to any rank, that ended the run early; None if it is complete."""
    checkpoint: Path
    """The one written after the last step."""


class Data(Protocol):
    """What a run is trained on."""

    num_samples: int
    fingerprint: str
    """The same for the same samples in the same order."""

    def batches(self, start: int, stop: int) -> AbstractContextManager[Iterator[Batch]]:
        """This rank's batches of steps `start` to `stop` - 1."""

    def verdict(self) -> UserError | None:
        """Asked before each step: why training should not go on with these data; None while it may."""


def fit(
    config: Config,
    world: World,
    objective: Objective,
    data: Data,
    hooks: Sequence[Hook] = (),
    *,
    state: dict[str, Any] | None = None,
    stop_signal: Callable[[], int | None] = lambda: None,
) -> Outcome:
    """Trains `objective` on `data` until the run that `config` describes is complete.

    state: the checkpoint to go on from. stop_signal: asked before each step, on every rank; a number, such as a
    signal's, ends the run after that step with a checkpoint, which is written before hooks are called that are due at
    that step. Raises `UserError` for what cannot be trained.
    """
    with on_this_rank("placing the network"):
        make_step = TrainingStep(objective, config, world)
    try:
        return _train(config, world, make_step, data, hooks, state, stop_signal)
    except Diverged as error:
        with shared_errors(world):
            newest = find_newest(config).state
        if newest is None or newest.get("lr_factor", 1.0) < 1:
            raise
        log.warning("%s; back to step %d, once, with %g of the learning rate", error, newest["step"], _LOWER_RATE)
        newest["lr_factor"] = _LOWER_RATE
        return _train(config, world, make_step, data, hooks, newest, stop_signal)


def _train(
    config: Config,
    world: World,
    make_step: TrainingStep,
    data: Data,
    hooks: Sequence[Hook],
    state: dict[str, Any] | None,
    stop_signal: Callable[[], int | None],
) -> Outcome:
    """What `fit` does, up to a divergence."""
    objective = make_step.objective
    start, steps = state["step"] if state else 0, config.train.num_steps(data.num_samples)
    run = Run(
        config=config,
        world=world,
        objective=objective,
        num_samples=data.num_samples,
        is_new=state is None,
        start=start,
        steps=steps,
        lr_factor=state.get("lr_factor", 1.0) if state else 1.0,
    )
    if state:
        with on_this_rank("placing the network"):
            make_step.load_state_dict(state)
    if state and start >= steps:
        with shared_errors(world):
            if world.is_main and not checkpoint_path(checkpoints_of(config), start).exists():
                save(config, state, seconds=0.0)  # from its fallback to where it is looked for
        log.info("%s is complete: %d of %d steps are done", run.output, start, steps)
        return Outcome(start, None, checkpoint_path(checkpoints_of(config), start))

    if world.is_main:
        log.info("steps %d to %d of %s, on %s", start + 1, steps, run.output, device_name(world))
        warn_of_lengths(run)
    step, stopped, flag = start, 0, SharedFlag(world)
    skipped = NonfiniteSteps(run, state.get("skipped") if state else None)
    with ExitStack() as opened, lost_ranks("reporting or saving"):
        reporter = Reporter(run, hooks, opened, state.get("hooks", {}) if state else {})
        loader = opened.enter_context(data.batches(start, steps))
        # not before: a run that cannot begin is to leave nothing that its corrected command would have to go on with
        if not state:
            _save(run, data, make_step, 0, {})
        clock = Clock(start)
        while not (stopped or reporter.is_finished(step)):
            # does any rank want to stop, or has it met too many damaged samples? answered when the step is made
            flag.ask(_UNFIT if data.verdict() else stop_signal() or 0)
            if step == start and (stopped := flag.answer()):
                break  # it has come while weights were fetched, or the operator was compiled
            # the next batch
            world.heartbeats.at("making batch", step + 1)
            with on_this_rank(f"making batch {step + 1}"), clock.waiting():
                batch = next(loader)
            if step == 0:
                world.heartbeats.at("reporting", 0)
                reporter.call(Moment(0, {}, batch))
            # its updates
            world.heartbeats.at("making step", step + 1, batch.ids)
            set_rates(run, make_step.optimizer, step)
            is_report = reporter.is_report(step + 1)
            with on_this_rank(f"making step {step + 1}"):
                progress = (step + 1) / steps
                logs = make_step(batch, progress=progress, log=is_report, freeze_backbone=is_frozen(run, step))
            if step == start:
                _require_logs(objective, logs)
            step += 1
            skipped.made(step, batch.ids)
            stopped = flag.answer()
            if step == start + 1:
                set_timeout(world, config.train.timeout)
            # reports, and what hooks do; after a signal the checkpoint comes first: hooks may outlast its grace
            world.heartbeats.at("reporting", step)
            report = _report(run, step, logs, make_step, clock) if is_report else {}
            is_saved = reporter.is_finished(step) or step % config.train.checkpoint_every == 0
            if is_report or is_saved or stopped:
                _settle(run, make_step, skipped, step, batch)
            if is_report and skipped.count:
                report["skipped_steps"] = skipped.count
            if stopped:
                _save(run, data, make_step, step, _beside(skipped, reporter))
            reporter.call(Moment(step, report, batch))
            if is_report:
                if not skipped.has_last:
                    require_finite(run, step, [name for name in objective.weights if not math.isfinite(report[name])])
                clock.lap(step)  # what hooks took is no time of training
            # a checkpoint, else after them: a run that is killed in between makes and reports the step again
            is_saved = is_saved or reporter.is_finished(step)
            if is_saved and not stopped:
                if skipped.in_a_row and step < steps:
                    log.warning("step %d was skipped: the checkpoint before it is kept as the newest", step)
                else:
                    _save(run, data, make_step, step, _beside(skipped, reporter))
    checkpoint = checkpoint_path(checkpoints_of(config), step)
    if stopped == _UNFIT:
        with shared_errors(world):
            if found := data.verdict():
                raise UserError(f"stopped after step {step} of {steps}, which is saved: {found}", errno=found.errno)
    if stopped:
        log.info("stopped after step %d of %d; run the same command to go on", step, steps)
        return Outcome(step, stopped, checkpoint)  # the same on every rank, also where no signal arrived
    elsewhere = "" if checkpoint.exists() else f", the last checkpoint in {fallback_of(config)}"
    log.info("done: %d steps; results in %s%s", steps, run.output, elsewhere)
    return Outcome(step, None, checkpoint)


def _settle(run: Run, make_step: TrainingStep, skipped: NonfiniteSteps, step: int, batch: Batch) -> None:
    """Learns which updates were skipped. Raises `Diverged`, with where it began, if there were too many in a row."""
    try:
        skipped.settle(step, make_step.skipped(), learning_rates(make_step.optimizer)["lr"])
    except Diverged as error:
        raise Diverged(f"{error}: {diagnose(make_step, batch)}; {remedy(run)}") from None


def _report(run: Run, step: int, logs: dict[str, Tensor], make_step: TrainingStep, clock: Clock) -> dict[str, float]:
    """What is reported of a step: numbers of the run, and the objective's; waits for the device."""
    values = read_logs(logs, run.world)
    lap, batch_size = clock.lap(step), run.config.train.batch_size
    return {
        "epoch": epoch_of(run, step),
        "loss": sum(weight * values[name] for name, weight in run.objective.weights.items()),
        **learning_rates(make_step.optimizer),
        "images_per_second": lap.steps * batch_size / lap.seconds,
        "data_wait": lap.waited / lap.seconds,
        **values,
    }


def _require_logs(objective: Objective, logs: dict[str, Tensor]) -> None:
    """Raises `UserError` if the reported loss cannot be made of what the updates log."""
    if missing := [name for name in objective.weights if name not in logs]:
        known = ", ".join(logs) or "nothing"
        raise UserError(f"{type(objective).__name__}.weights: no update logs {missing[0]!r}; they log {known}")


def _beside(skipped: NonfiniteSteps, reporter: Reporter) -> dict[str, Any]:
    """What the loop itself knows that is to be known again: counts, and what hooks have seen."""
    return {"skipped": skipped.state_dict(), "hooks": reporter.state_dict()}


def _save(run: Run, data: Data, make_step: TrainingStep, step: int, beside: dict[str, Any]) -> None:
    """Writes a checkpoint, on the first rank, unless the network has diverged; beside: further entries of it."""
    run.world.heartbeats.at("saving", step)
    with shared_errors(run.world):
        if not run.world.is_main:
            return
        state = {
            "step": step,
            **make_step.state_dict(),
            "config": config_to_values(run.config),
            "archive": data.fingerprint,
            **beside,
        }
        if run.lr_factor != 1:
            state["lr_factor"] = run.lr_factor
        broken = [name for name, value in state["model"].items() if not value.isfinite().all()]
        require_finite(run, step, broken)
        save(run.config, state, seconds=run.config.train.pause(run.world.size))
