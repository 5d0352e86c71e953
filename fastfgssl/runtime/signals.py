"""Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP: as a request that a loop honours between two steps, or as an orderly end.

Schedulers announce the end of a job: Kubernetes by SIGTERM, Slurm by SIGTERM or SIGUSR1; a terminal that is closed by
SIGHUP, unless `nohup` has it ignored. A launcher that is gone announces it too: its ranks get a SIGTERM from the
system.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_AGAIN_AFTER = 2.0  # seconds: torchrun passes on the terminal's Ctrl-C, so one press can arrive twice
_GRACE = 1.0  # seconds in which a child shows that the signal reached it too
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_nothing_to_save = False
_is_asked = False


class StopRequest:
    """While entered, these signals only set `signal_number`; the same one again, later, or SIGINT, ends the process.

    At once, with the exit code 128 + its number, wherever the program is: also where the main thread waits for a rank
    that is gone, and no Python of it runs. A thread is told of each signal by the system's handler, which needs none.
    Where there is `nothing_to_save`, the first signal ends the process so.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._since = 0.0
        self._previous: dict[int, Any] = {}
        self._launcher = os.getppid()

    def __enter__(self) -> StopRequest:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _STOPPING:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._note)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _is_asked
        _is_asked = False
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)  # which ends the thread
        self._thread.join()
        os.close(self._read)

    def _listen(self) -> None:
        while numbers := os.read(self._read, 64):
            for number in numbers:
                if number in _STOPPING:
                    self._request(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread, when it comes to that: at once where Python is at work, so the next line knows."""
        if self.signal_number is None:
            global _is_asked
            self.signal_number, self._since, _is_asked = number, time.monotonic(), True

    def _request(self, number: int) -> None:
        if _nothing_to_save:
            _end_at_once(number, f"ended by {signal.Signals(number).name} while it waited for other ranks")
        if self.signal_number is None:
            self._note(number, None)
            return
        is_again = number in (self.signal_number, signal.SIGINT) and time.monotonic() - self._since > _AGAIN_AFTER
        # what a launcher's end sends is no second wish; and a SIGTERM after SIGUSR1 is the scheduler's next notice
        if is_again and os.getppid() == self._launcher:
            _end_at_once(number, f"ended at once by a second {signal.Signals(number).name}")


def stop_is_asked() -> bool:
    """Whether a `StopRequest` that is entered has got a signal: what waits for something should not wait for long."""
    return _is_asked


def _end_at_once(number: int, text: str) -> NoReturn:
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    _end_children(os.getpid())
    os._exit(128 + number)


def _end_children(pid: int) -> None:
    """Ends what a process has started, such as compilers, and what those have."""
    with suppress(OSError, ValueError):
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, tasks.read_text().split()):
                _end_children(child)
                os.kill(child, signal.SIGTERM)


@contextmanager
def nothing_to_save() -> Iterator[None]:
    """While entered, the first signal of a `StopRequest` ends the process too: nobody is there to be waited for."""
    global _nothing_to_save
    _nothing_to_save = True
    try:
        yield
    finally:
        _nothing_to_save = False


def end_with_launcher() -> None:
    """On Linux makes the system send this process SIGTERM when torchrun, which started it, is gone.

    Else its ranks would train on as orphans where torchrun is killed, or ended by a signal that it does not know.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    launcher = os.getppid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != launcher:  # meanwhile
        os.kill(os.getpid(), signal.SIGTERM)


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


@contextmanager
def signals_wait() -> Iterator[None]:
    """While entered, SIGINT and SIGTERM do not reach this thread: for code that takes them for errors of its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
