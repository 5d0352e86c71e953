"""Ctrl-C, SIGTERM and SIGUSR1: as a request that a loop honours between two steps, or as an orderly end.

Schedulers announce the end of a job by one of the latter two: Kubernetes by SIGTERM, Slurm by either.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_AGAIN_AFTER = 2.0  # seconds: torchrun passes on the terminal's Ctrl-C, so one press can arrive twice
_GRACE = 1.0  # seconds in which a child shows that the signal reached it too


class StopRequest:
    """While entered, these signals only set `signal_number`; a second SIGINT, later, interrupts at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in _STOPPING:
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _AGAIN_AFTER:
            raise KeyboardInterrupt


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While entered, SIGTERM raises SystemExit(143), so that every `finally` is gone through; a second ends at once."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_child(command: Sequence[str], **options: Any) -> int:
    """Runs a command, with `options` of `subprocess.Popen`, and returns its exit code.

    Where this process is told to end meanwhile, so is the child, and waited for: torchrun then ends its ranks, which it
    does not if it is killed.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            return process.wait()
        except BaseException:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
            if process.poll() is None:
                process.terminate()
                process.wait()
            raise
