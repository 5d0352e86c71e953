"""A process that works for its parent: it says in shared memory what it is at and since when, and ends with it."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, NamedTuple

from fastfgssl.runtime.errors import UserError

NO_ITEM = -1
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


class Worker(NamedTuple):
    """A process, the pipe to it, and what it is at."""

    process: BaseProcess
    pipe: Connection
    watch: Watch


Function = Callable[[Any, Watch], Any]


def expect_workers(*modules: str) -> None:
    """Lets the process that workers are forked from import `modules` while this one is at something else.

    Workers are no forks of this process, which would copy the locks of threads (rich's, pyarrow's, torch's). Ctrl-C
    reaches every process of a terminal: they inherit from that one that they ignore it.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    with _ignored_interrupt():
        multiprocessing.forkserver.ensure_running()


def start_worker(function: Function) -> Worker:
    """Starts a process that receives tasks by its pipe and sends what `function` makes of each, or its exception."""
    expect_workers(type(function).__module__)  # if nobody has
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    shared = context.RawArray(ctypes.c_double, 3)
    watch = Watch(shared)
    watch.rest()
    process = context.Process(target=_serve, args=(function, theirs, shared, dict(os.environ)), daemon=True)
    with _no_script():
        process.start()  # which may wait for seconds for what is imported
    theirs.close()  # so that the end of the worker is the end of the pipe
    return Worker(process, ours, watch)


def end_workers(workers: Sequence[Worker]) -> None:
    """Kills them, whatever they are at."""
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


def death_of(worker: Worker, task: Any) -> Death:
    """How a worker ended whose pipe has ended, while it was at `task`."""
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
