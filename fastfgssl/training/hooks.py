"""What a run does beside training: hooks, each at its own interval. The loop calls them; it knows none of them."""

from __future__ import annotations

import logging
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch
from fastfgssl.data.picture import save_views_picture
from fastfgssl.objectives.base import Objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError, file_errors

log = logging.getLogger(__name__)
NEVER = sys.maxsize
"""The interval of a hook that is called before the first step and after the last alone."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What does not change in a run."""

    config: Config
    world: World
    objective: Objective
    num_samples: int
    """In the archive."""
    is_new: bool
    """Whether there was no checkpoint to go on from."""
    start: int
    """Steps that were done before."""
    steps: int
    """Steps when it is complete."""
    lr_factor: float = 1.0
    """Of every learning rate: below 1 for a run that has diverged before, and went back to a checkpoint."""

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    @property
    def first_moment(self) -> int:
        """The step of the first moment. What a killed run has reported from there on is reported again."""
        return self.start + 1 if self.start else 0


class Moment(NamedTuple):
    """When a hook is called: after a step, or at step 0 before the first."""

    step: int
    """Steps done."""
    logs: dict[str, float]
    """What is reported at this moment; empty between reports. A hook may add to it for those after it: `epoch` then
    joins what it adds to none."""
    batch: Batch


class Hook:
    """Called on every rank after each `every` steps, after the last of the run, and before the first.

    Hooks are called in their order. The step after which a signal stops a run is one like any other. Once the first
    step is done, ranks wait for a call of another at most `train.timeout` seconds. A `UserError` ends all ranks.
    """

    every: int = 1
    """Steps, 1 or more, between two calls."""
    wants_logs: bool = False
    """Whether each call is to have a report; else it has one where `train.log_every` makes one."""

    @property
    def is_satisfied(self) -> bool:
        """Whether training may end before its time; asked on the first rank where there is a report."""
        return False

    def begin(self, run: Run) -> None:
        """Called before training begins or goes on; again, after `end`, where a run goes back to a checkpoint."""

    def __call__(self, moment: Moment) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Plain values that a run which goes on is to know again; a checkpoint of the first rank keeps them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`, on every rank, after `begin`."""

    def end(self) -> None:
        """Called when training has ended, in whatever way. After an error, what it raises is only a warning."""


class Sink(Hook):
    """Opens on the first rank, writes what is reported there, and closes."""

    _is_open = False

    def begin(self, run: Run) -> None:
        if run.world.is_main:
            self.open(run)
            self._is_open = True

    def __call__(self, moment: Moment) -> None:
        if self._is_open and moment.logs:
            self.write(moment.step, moment.logs)

    def end(self) -> None:
        if self._is_open:
            self._is_open = False
            self.close()

    def open(self, run: Run) -> None:
        raise NotImplementedError

    def write(self, step: int, logs: dict[str, float]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


@contextmanager
def spared(file: Path) -> Iterator[None]:
    """For a file of which the run is none the worse without: that it cannot be written in the body is a warning."""
    try:
        with file_errors("write", file):
            yield
    except UserError as error:
        log.warning("%s; the run goes on without", error)


class ViewsPicture(Hook):
    """Writes views.png: what the network is shown, from the first batch."""

    every = NEVER

    def begin(self, run: Run) -> None:
        self._run = run

    def __call__(self, moment: Moment) -> None:
        data, file = self._run.config.data, self._run.output / "views.png"
        if moment.step > 0 or not self._run.world.is_main:
            return
        grids = self._run.objective.needs.grids
        with file_errors("write", file):
            save_views_picture(moment.batch, file, grids=grids, mean=data.mean, std=data.std)


class DataWaitWarning(Hook):
    """Warns of a run that keeps waiting for data.

    It speaks when the share of time spent waiting was above `threshold` in `intervals` reports in a row, and at most
    once in `pause` seconds. The first report is left out: there the pipelines fill.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.05,
        intervals: int = 3,
        pause: float = 3600.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold, self._intervals, self._pause, self._now = threshold, intervals, pause, now
        self._shares: list[float] | None = None  # above the threshold, in a row; None before the first report
        self._last_warning = -math.inf

    def begin(self, run: Run) -> None:
        self._run = run

    def __call__(self, moment: Moment) -> None:
        if "data_wait" not in moment.logs or self._run.world.local_rank > 0:  # ranks of a machine share its disks
            return
        if self._shares is None:
            self._shares = []
            return
        share = moment.logs["data_wait"]
        self._shares = [*self._shares, share][-self._intervals :] if share > self._threshold else []
        if len(self._shares) < self._intervals or self._now() - self._last_warning < self._pause:
            return
        self._last_warning = self._now()
        config = shlex.quote(str(self._run.output / "config.yaml"))
        log.warning(
            "%.0f%% of the time of the last %d reports was spent waiting for data; to see why: fastfgssl doctor"
            " --config %s",
            100 * sum(self._shares) / len(self._shares),
            self._intervals,
            config,
        )
