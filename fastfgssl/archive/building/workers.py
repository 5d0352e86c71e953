"""Tasks of many items, done by worker processes that may be killed, crash or hang without an end to the whole.

One that takes too long is killed; what becomes of the task of a worker that ends before its time is for the caller to
say. No process is left behind, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

from fastfgssl.archive.building.worker import NO_ITEM, Death, Function, Worker, death_of, end_workers, start_worker
from fastfgssl.runtime.errors import UserError

_LOOK_EVERY = 0.5  # seconds between two looks at how long workers have been at their items
_STARTS = 3  # of a worker that dies before it begins anything


class Done(NamedTuple):
    """A task that is done."""

    task: Any
    result: Any


class Pool(Protocol):
    """Processes that do tasks, on this machine or on others."""

    @property
    def busy(self) -> bool:
        """Whether a task was given of which nothing was collected yet."""

    def room(self) -> int:
        """How many tasks it takes now."""

    def give(self, task: Any) -> None:
        """Begins a task, for which there is room."""

    def collect(self) -> list[Done | Death]:
        """What has become of tasks since it was asked last, after a short wait at most if that is nothing.

        An OSError or UserError of a task is raised here; any other is a RuntimeError with its traceback.
        """

    def close(self) -> None:
        """Ends all processes."""


def run_tasks(
    function: Function,
    tasks: Iterable[Any],
    workers: int,
    *,
    max_seconds: float = float("inf"),
    after_death: Callable[[Death], Any],
) -> Generator[Any, None, None]:
    """`run_in` of up to `workers` processes of this machine, each killed if it is at one item for > `max_seconds`."""
    return run_in(Workers(function, workers, max_seconds=max_seconds), tasks, after_death=after_death)


def run_in(pool: Pool, tasks: Iterable[Any], *, after_death: Callable[[Death], Any]) -> Generator[Any, None, None]:
    """Yields function(task, watch) for each task, as they are done, computed by the pool.

    `tasks` are taken as they are needed. `after_death` returns the task to give to another worker. The pool is closed
    with the generator. Raises what `Pool.collect` does.
    """
    waiting = iter(tasks)
    again: list[Any] = []

    def next_task() -> Any:
        return again.pop() if again else next(waiting, None)

    with closing(pool):
        task = next_task()
        while task is not None or pool.busy:
            while task is not None and pool.room():
                pool.give(task)
                task = next_task()
            for event in pool.collect():
                if isinstance(event, Death):
                    again.append(after_death(event))
                else:
                    yield event.result
            if task is None:
                task = next_task()


class Workers:
    """Up to `workers` processes of this machine, which end by themselves if this process is killed.

    One that is at one item for more than `max_seconds` is killed.
    """

    def __init__(self, function: Function, workers: int, *, max_seconds: float = float("inf")) -> None:
        self._function, self._workers, self._max_seconds = function, workers, max_seconds
        self._idle: list[Worker] = []
        self._busy: dict[Connection, tuple[Worker, Any]] = {}
        self._dead_starts = 0

    @property
    def busy(self) -> bool:
        return bool(self._busy)

    def room(self) -> int:
        return self._workers - len(self._busy)

    def give(self, task: Any) -> None:
        worker = self._idle.pop() if self._idle else start_worker(self._function)
        self._busy[worker.pipe] = worker, task
        with suppress(OSError):  # it is dead, which the end of its pipe tells
            worker.pipe.send(task)

    def collect(self) -> list[Done | Death]:
        events: list[Done | Death] = []
        ready = wait(list(self._busy), timeout=_LOOK_EVERY)
        for pipe in [pipe for pipe in self._busy if pipe in ready]:
            worker, task = self._busy[pipe]
            try:
                result = pipe.recv()
            except (EOFError, OSError):
                del self._busy[pipe]
                events.append(death_of(worker, task))
                continue
            del self._busy[pipe]
            self._idle.append(worker)
            if isinstance(result, Exception):
                raise result
            self._dead_starts = 0
            events.append(Done(task, result))
        for pipe, (worker, task) in list(self._busy.items()):
            item, stage, seconds = worker.watch.read()
            if item != NO_ITEM and seconds > self._max_seconds:
                del self._busy[pipe]
                end_workers([worker])
                events.append(Death(task, item, stage, f"took more than {self._max_seconds:g} s", True))
        for death in events:
            if isinstance(death, Death):
                self._dead_starts += death.item == NO_ITEM
                if self._dead_starts >= _STARTS:
                    raise UserError(
                        f"workers end before they begin ({death.reason}): if memory ran out, take fewer --workers"
                    )
        return events

    def close(self) -> None:
        end_workers([*self._idle, *(worker for worker, _ in self._busy.values())])
        self._idle.clear()
        self._busy.clear()
