"""What comes next is known exactly, so a thread makes it before it is asked for."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int:
        """Bytes of memory that it holds."""


T = TypeVar("T", bound=Sized)


class ReadAhead(Iterator[T]):
    """`make(step)` for each step from `start` to `stop` - 1, in order, called by a thread ahead of who iterates.

    The thread pauses while `items` results are waiting to be taken, or results of `nbytes` bytes; one is made whatever
    its size. An exception of `make` is raised where its result would have come, once, and ends the thread. So does
    `close`, and so does dropping this object.
    """

    def __init__(self, make: Callable[[int], T], start: int, stop: int, *, items: int, nbytes: int) -> None:
        self._queue: _Queue[T] = _Queue(items, nbytes)
        # the thread refers to the queue alone: nothing but this object's owner keeps this object
        self._thread = threading.Thread(
            target=_fill, args=(self._queue, make, start, stop), name="fastfgssl-readahead", daemon=True
        )
        weakref.finalize(self, self._queue.close)
        self._thread.start()

    def __next__(self) -> T:
        return self._queue.take()

    def close(self) -> None:
        """Ends the thread, once it has made what it is making, and drops what was not taken."""
        self._queue.close()
        self._thread.join()


class _Queue(Generic[T]):
    """Between the two threads."""

    def __init__(self, items: int, nbytes: int) -> None:
        self._max_items, self._max_bytes = items, nbytes
        self._made: deque[T] = deque()
        self._nbytes = 0
        self._end: BaseException | None = None  # what is raised once everything is taken
        self._changed = threading.Condition(threading.RLock())  # a collection may call `close` at any time

    def take(self) -> T:
        """The next result, waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._made or self._end is not None)
            if not self._made:
                error, self._end = self._end or StopIteration(), StopIteration()
                try:
                    raise error
                finally:
                    del error  # its frames keep all that is alive in them: nothing here may keep it
            item = self._made.popleft()
            self._nbytes -= item.nbytes
            self._changed.notify_all()
            return item

    def put(self, item: T) -> None:
        with self._changed:
            if self._end is None:
                self._made.append(item)
                self._nbytes += item.nbytes
                self._changed.notify_all()

    def wait_for_room(self) -> bool:
        """Waits until another result may be made; False if none is wanted any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._end is not None
                    or not self._made
                    or (len(self._made) < self._max_items and self._nbytes < self._max_bytes)
                )
            )
            return self._end is None

    def end(self, error: BaseException) -> None:
        """Nothing comes after what was put."""
        with self._changed:
            if self._end is None:
                self._end = error
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing comes any more."""
        with self._changed:
            self._made.clear()
            self._nbytes = 0
            self.end(StopIteration())


def _fill(queue: _Queue, make: Callable[[int], Sized], start: int, stop: int) -> None:
    try:
        for step in range(start, stop):
            if not queue.wait_for_room():
                return
            queue.put(make(step))
    except BaseException as error:  # its taker's to deal with
        queue.end(error)
    else:
        queue.end(StopIteration())
