"""Tasks of many items, done by worker processes that may be killed, crash or hang without an end to the whole.

A worker says in shared memory which item it is at and since when. One that takes too long is killed; what becomes of
the task of a worker that ends before its time is for the caller to say. No process is left behind, however it ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from fastfgssl.runtime.errors import UserError

NO_ITEM = -1
_LOOK_EVERY = 0.5  # seconds between two looks at how long workers have been at their items
_STARTS = 3  # of a worker that dies before it begins anything
_JOIN_SECONDS = 5.0  # a process in the middle of a call to a file server that does not answer cannot end


class Watch:
    """What a worker is at, as both it and its parent see it."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared  # double [3]: item, stage, since

    def begin(self, item: int, stage: int = 0) -> None:
        """The worker is at `item` of its task from now on, at a `stage` that is its own to number."""
        self._shared[:] = item, stage, time.monotonic()

    def renew(self) -> None:
        """The worker goes on with what it is at: its time begins anew."""
        self._shared[2] = time.monotonic()

    def rest(self) -> None:
        """The worker is at no item."""
        self.begin(NO_ITEM)

    def read(self) -> tuple[int, int, float]:
        """The item, its stage, and the seconds since it was begun."""
        item, stage, since = self._shared[:]
        return int(item), int(stage), time.monotonic() - since


class Death(NamedTuple):
    """How a worker ended."""

    task: Any
    item: int
    """Which item of its task it was at, `NO_ITEM` for none."""
    stage: int
    reason: str
    """Such as `killed its worker (SIGSEGV)`."""
    timed_out: bool


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection
    watch: Watch


class Done(NamedTuple):
    """A task that is done."""

    task: Any
    result: Any


Function = Callable[[Any, Watch], Any]


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
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Any]] = {}
        self._dead_starts = 0

    @property
    def busy(self) -> bool:
        return bool(self._busy)

    def room(self) -> int:
        return self._workers - len(self._busy)

    def give(self, task: Any) -> None:
        worker = self._idle.pop() if self._idle else _start(self._function)
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
                events.append(_death(worker, task))
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
                _end([worker])
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
        _end([*self._idle, *(worker for worker, _ in self._busy.values())])
        self._idle.clear()
        self._busy.clear()


def expect_workers(*modules: str) -> None:
    """Lets the process that workers are forked from import `modules` while this one is at something else.

    Workers are no forks of this process, which would copy the locks of threads (rich's, pyarrow's, torch's).
    """
    multiprocessing.set_forkserver_preload(list(modules))
    with _ignored_interrupt():
        multiprocessing.forkserver.ensure_running()


def _start(function: Function) -> _Worker:
    expect_workers(type(function).__module__)  # if nobody has
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    shared = context.RawArray(ctypes.c_double, 3)
    watch = Watch(shared)
    watch.rest()
    process = context.Process(target=_serve, args=(function, theirs, shared, dict(os.environ)), daemon=True)
    # Ctrl-C reaches every process of the terminal: workers inherit that they ignore it
    with _ignored_interrupt(), _no_script():
        process.start()
    theirs.close()  # so that the end of the worker is the end of the pipe
    return _Worker(process, ours, watch)


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()  # it holds nothing that would have to be put in order
    for worker in workers:
        worker.process.join(_JOIN_SECONDS)
        worker.pipe.close()


def _serve(function: Function, pipe: Connection, shared: Any, environment: dict[str, str]) -> None:
    if not _ends_with_parent():  # killed while this one started: the next run is at work already
        return
    os.environ.clear()  # it is that of the first start
    # decoders would set up a GPU in each worker, which none of them uses
    os.environ.update(environment, CUDA_VISIBLE_DEVICES="")
    watch = Watch(shared)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionError):  # the parent is gone
            return
        try:
            result = function(task, watch)
        except (OSError, UserError) as error:
            result = error
        except MemoryError:
            result = UserError("a worker has too little memory to work at all: give it more --max-memory")
        except Exception:
            result = RuntimeError(f"a worker failed:\n{traceback.format_exc()}")
        watch.rest()
        with suppress(ConnectionError):
            pipe.send(result)


def _ends_with_parent() -> bool:
    """Lets the system end this process, whatever it is at, when its parent goes. False if it has gone already."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which ends a process, and comes when nobody can write to this pipe
    fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    return not wait([parent.sentinel], timeout=0)


def _death(worker: _Worker, task: Any) -> Death:
    item, stage, _ = worker.watch.read()
    worker.process.join(_JOIN_SECONDS)
    code = worker.process.exitcode or 0
    worker.pipe.close()
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Death(task, item, stage, f"killed its worker ({how})", False)


@contextmanager
def _no_script() -> Iterator[None]:
    """Lets a process start without importing the script that this one runs, which may take longer than its work.

    What workers do is defined in modules. So a script need not keep what it does below `if __name__ == "__main__":`.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def _ignored_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python sets signals in the main thread only
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
