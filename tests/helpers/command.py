"""Commands as `fastfgssl` runs them, without the seconds in which a new process imports torch and DALI."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import pytest

from fastfgssl.runtime.console import run_tool


def run_here(main: Callable[[], int | None], *arguments: object) -> int:
    """The exit code of `main` with these arguments, in this process; what it prints is for `capsys`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fastfgssl", *map(str, arguments)])
        for stream in ("stdout", "stderr"):  # which run_tool takes over
            patch.setattr(sys, stream, getattr(sys, stream))
        with pytest.raises(SystemExit) as ended:
            run_tool(main)
    return ended.value.code


class Command:
    """A script with its arguments in a process of its own, forked from one that has imported what it needs.

    As a `subprocess.Popen` in a session of its own, to which a signal may be sent as a terminal sends it.
    """

    def __init__(
        self,
        script: Path,
        *arguments: object,
        cwd: Path | None = None,
        stdout: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - read when it has ended
        out, errors = (file.fileno() for file in self._files)
        streams = _Streams([out if stdout is None else stdout, errors])
        place = str(cwd or Path.cwd()), dict(os.environ if environment is None else environment)
        words = [str(script), *map(str, arguments)]
        self._process = multiprocessing.get_context("forkserver").Process(target=_run, args=(words, streams, *place))
        self._process.start()
        self.pid: int = self._process.pid
        atexit.register(self._process.kill)  # whom the end of this process would wait for

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 240) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a command", timeout)
        return self._process.exitcode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        self.wait(timeout)
        for file in self._files:
            file.seek(0)
        out, errors = (file.read().decode() for file in self._files)
        return out, errors

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def run_command(script: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Waits for the end of a `Command`, and has its exit code and what it has printed."""
    command = Command(script, *arguments, **options)
    out, errors = command.communicate()
    return subprocess.CompletedProcess([], command.returncode, out, errors)


class _Streams:
    """File descriptors that another process receives."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, ([DupFd(number) for number in self._numbers],)


def _received(streams: list[Any]) -> list[int]:
    return [stream.detach() for stream in streams]


def _run(words: list[str], streams: list[int], cwd: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 - as any
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
