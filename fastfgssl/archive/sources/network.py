"""What sources behind a network share: patience with servers that fail for a while, and asking for several at once."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import repeat
from threading import Event
from typing import TypeVar

from fastfgssl.archive.sources.base import nothing
from fastfgssl.runtime.errors import in_a_line
from fastfgssl.runtime.patience import patiently

T = TypeVar("T")
R = TypeVar("R")
AHEAD, AHEAD_BYTES = 8, 16 << 20
"""Things, and bytes of them, that are on their way to a worker at once."""
AWAY = 16
"""How often in a row nothing may come from a server before it is not asked again for now."""
_LOOK_EVERY = 1.0  # seconds
_FLOWS = 64 << 10  # bytes that come in them if something comes at all: a trickle is no life


class Turn:
    """Of one thing among several that are asked for at once: how much of it has come, and whether it is the next."""

    def __init__(self) -> None:
        self.arrived = 0
        """Bytes, for who asks to count."""
        self._event = Event()

    def wait(self) -> None:
        """Returns once everything before it has been taken."""
        self._event.wait()

    def come(self) -> None:
        self._event.set()


def in_order(
    items: Sequence[T],
    act: Callable[[T, Turn], R],
    *,
    size: Callable[[T], int] = lambda item: 0,
    alive: Callable[[], object] = nothing,
) -> Iterator[R | OSError]:
    """What `act` returns of each item, or the OSError that it raises, in order; some are under way in threads.

    size: bytes of what comes, if that is known before. `alive` is called while what is next is coming. When nothing has
    come `AWAY` times in a row (TimeoutError, ConnectionError), the other items are not tried.
    """
    todo = deque(items)
    waiting: deque[tuple[Future[R], Turn, int]] = deque()
    coming = silent = 0
    last: OSError = OSError()
    with ThreadPoolExecutor(AHEAD) as threads:
        try:
            while todo or waiting:
                while todo and silent < AWAY and len(waiting) < AHEAD:
                    bytes_ = max(size(todo[0]), 0)
                    if waiting and coming + bytes_ > AHEAD_BYTES:
                        break
                    turn = Turn()
                    waiting.append((threads.submit(act, todo.popleft(), turn), turn, bytes_))
                    coming += bytes_
                if not waiting:
                    yield from repeat(last, len(todo))
                    return
                future, turn, bytes_ = waiting.popleft()
                turn.come()
                result = _result(future, turn, alive)
                if isinstance(result, OSError):
                    last = result
                silent = silent + 1 if isinstance(result, (TimeoutError, ConnectionError)) else 0
                yield result
                coming -= bytes_
        finally:
            for future, turn, _ in waiting:  # for which nobody asks any more
                future.cancel()
                turn.come()


def from_server(act: Callable[[], T]) -> T:
    """What `act` returns, tried `patiently` whatever fails but a refusal. Raises OSError, whatever it raises."""
    final = (FileNotFoundError, PermissionError)
    try:
        return patiently(act, may_pass=lambda error: not isinstance(error, final))
    except final:
        raise
    except Exception as error:
        raise system_error(error) from error


def system_error(error: Exception) -> OSError:
    """An exception of whatever library as one of the system."""
    return error if isinstance(error, OSError) else OSError(None, in_a_line(error))


def public(url: str) -> str:
    """A URL to be shown: without user and password, and without the query of a server, which may name a patient."""
    url = re.sub(r"\A([^:/]+://)[^/?#]*@", r"\1", url)
    return re.sub(r"\A((?:dicomweb[^:]*|https?)://[^?#]*)[?#].*", r"\1", url, flags=re.DOTALL)


def _result(future: Future[R], turn: Turn, alive: Callable[[], object]) -> R | OSError:
    seen = turn.arrived
    while not wait([future], timeout=_LOOK_EVERY).done:
        if turn.arrived - seen >= _FLOWS:
            alive()
        seen = turn.arrived
    try:
        return future.result()
    except OSError as error:
        return error
