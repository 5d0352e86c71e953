"""Calls the hooks of a run when they are due, on all ranks together where one may have to say something."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch

from fastfgssl.runtime.agreement import mean_over_ranks, on_this_rank, shared_errors
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.memory import memory_errors
from fastfgssl.training.hooks import Hook, Moment, Run

log = logging.getLogger(__name__)


class Reporter:
    """Calls hooks when they are due; they are closed with `opened`."""

    def __init__(self, run: Run, hooks: Sequence[Hook], opened: ExitStack, states: dict[str, Any]) -> None:
        """states: those that `state_dict` gave, of a run that goes on."""
        self._run, self._hooks = run, hooks
        with shared_errors(run.world):
            for hook in hooks:
                opened.push(_ending(hook))
                hook.begin(run)
                if (state := states.get(type(hook).__name__)) is not None:
                    hook.load_state_dict(state)
                if hook.every < 1:
                    raise UserError(f"hook {type(hook).__name__}: every = {hook.every!r}: must be 1 step or more")
        self._can_end = any(type(hook).is_satisfied is not Hook.is_satisfied for hook in hooks)
        self._is_satisfied = self._agree()

    def state_dict(self) -> dict[str, Any]:
        """What hooks know that a run which goes on is to know again, by the name of their type."""
        return {type(hook).__name__: state for hook in self._hooks if (state := hook.state_dict())}

    def is_report(self, step: int) -> bool:
        """Whether the logs of a step are wanted: every so often, and by hooks."""
        intervals = [self._run.config.train.log_every, *(hook.every for hook in self._hooks if hook.wants_logs)]
        return step == self._run.steps or any(step % interval == 0 for interval in intervals)

    def is_finished(self, step: int) -> bool:
        """Whether the run is complete after `step` steps, or a hook has seen enough; the same on every rank."""
        return step >= self._run.steps or self._is_satisfied

    def call(self, moment: Moment) -> None:
        due = [hook for hook in self._hooks if moment.step == self._run.steps or moment.step % hook.every == 0]
        # between reports hooks only count: ranks need not meet for that
        ranks_meet = moment.step == 0 or moment.logs
        with (
            shared_errors(self._run.world) if ranks_meet else on_this_rank("calling hooks"),
            memory_errors("calling hooks"),
        ):
            for hook in due:
                hook(moment)
                if moment.logs:  # the loop's own have it; a hook may have begun a report beside those, as at step 0
                    moment.logs.setdefault("epoch", epoch_of(self._run, moment.step))
        if ranks_meet:
            self._is_satisfied = self._agree()

    def _agree(self) -> bool:
        """Whether a hook of the first rank has seen enough, told to the others; where they meet anyway."""
        if not self._can_end:
            return False
        is_satisfied = self._run.world.is_main and any(hook.is_satisfied for hook in self._hooks)
        return mean_over_ranks(torch.tensor([float(is_satisfied)], dtype=torch.float64), self._run.world).item() > 0


def _ending(hook: Hook) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    """Ends `hook` where an `ExitStack` closes. What it raises there must not hide the error that has ended the run."""

    def end(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            hook.end()
        except Exception as late:
            if error is None:
                raise
            log.warning("%s: %s", type(hook).__name__, late)

    return end


def epoch_of(run: Run, step: int) -> float:
    """Passes over the archive, after `step` steps."""
    return step * run.config.train.batch_size / run.num_samples
