"""Ctrl-C, SIGTERM and SIGUSR1 as a request that a loop honours between two steps.

Schedulers announce the end of a job by one of the latter two: Kubernetes by SIGTERM, Slurm by either.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_AGAIN_AFTER = 2.0  # seconds: torchrun passes on the terminal's Ctrl-C, so one press can arrive twice


class StopRequest:
    """While entered, these signals only set `signal_number`; a second SIGINT, later, interrupts at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._since = 0.0
        self._previous: dict[int, object] = {}

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
