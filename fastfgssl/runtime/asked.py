"""Something that may never answer, such as a store of torch whose process is stopped, asked for a bounded time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late  # TimeoutError itself from Python 3.11 on
from queue import SimpleQueue
from typing import Any

_UNANSWERED = 1.0  # seconds that it is given while it owes an answer already


class NoAnswer(Exception):
    """It has not answered yet."""


class Asked:
    """An object whose methods are called in a thread of its own, one at a time, by whichever thread asks."""

    def __init__(self, asked: Any) -> None:
        self._asked = asked
        self._calls: SimpleQueue[tuple[Future, Callable[[], Any]]] = SimpleQueue()
        self._last: Future | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._answer, name="asked", daemon=True).start()

    def ask(self, name: str, *arguments: Any, seconds: float) -> Any:
        """What its method `name` returns or raises. Raises `NoAnswer` if that takes longer, or an earlier one does."""
        with self._lock:
            try:
                if self._last is not None and not self._last.done():
                    self._last.exception(min(seconds, _UNANSWERED))
                self._last = Future()
                self._calls.put((self._last, lambda: getattr(self._asked, name)(*arguments)))
                return self._last.result(seconds)
            except Late:
                raise NoAnswer from None

    def _answer(self) -> None:
        while True:
            future, call = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:  # whatever it is, it is for whoever asks
                future.set_exception(error)
