"""A function over many items, computed by worker processes, its results in order and bounded in number.

Beside `concurrent.futures` it names the item at which a worker was killed, ends at once on Ctrl-C, leaves no process
behind, and holds only so many results that wait for an earlier one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from fastfgssl.runtime.errors import UserError

AHEAD = 4  # items for each worker that may be in work or wait for an earlier one: what bounds the memory


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection


def in_order(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Generator[Any, None, None]:
    """Yields function(item) for each item, in order, computed by `workers` processes.

    A result waits for the earlier ones, so at most `AHEAD` results for each worker exist at a time. The processes end
    with the generator, and by themselves if this process is killed. Raises UserError if a worker is killed.
    """
    with _ignored_interrupt():  # Ctrl-C reaches every process of the terminal: workers inherit that they ignore it
        pool = [_start(function) for _ in range(min(workers, len(items)))]
    try:
        idle = list(pool)
        busy: dict[Connection, tuple[_Worker, int]] = {}
        finished: dict[int, Any] = {}
        given = due = 0
        while due < len(items):
            while idle and given < min(len(items), due + AHEAD * len(pool)):
                worker = idle.pop()
                try:
                    worker.pipe.send(items[given])
                except OSError:
                    raise _death(worker, items[given]) from None
                busy[worker.pipe] = worker, given
                given += 1
            ready = wait(list(busy))
            for pipe in [pipe for pipe in busy if pipe in ready]:
                worker, index = busy.pop(pipe)
                try:
                    finished[index] = pipe.recv()
                except (EOFError, OSError):
                    raise _death(worker, items[index]) from None
                idle.append(worker)
            while due in finished:
                yield finished.pop(due)
                due += 1
    finally:
        for worker in pool:
            worker.process.kill()  # it holds nothing that would have to be put in order
        for worker in pool:
            worker.process.join()
            worker.pipe.close()


def _start(function: Callable[[Any], Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of pyarrow's and rich's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the end of the worker is the end of the pipe
    return _Worker(process, ours)


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # decoders would set up a GPU in each worker, which none of them uses
    while True:
        try:
            item = pipe.recv()
        except (EOFError, ConnectionError):  # the parent is gone
            return
        result = function(item)
        with suppress(ConnectionError):
            pipe.send(result)


def _death(worker: _Worker, item: Any) -> Exception:
    worker.process.join()
    code = worker.process.exitcode or 0
    if code >= 0:
        return RuntimeError(f"a worker failed at {item}; its traceback is above")
    return UserError(
        f"a worker was killed by {signal.Signals(-code).name} at {item}: if memory ran out, take fewer --workers "
        "or a lower --max-pixels; if it happens again at that file, move the file away"
    )


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
