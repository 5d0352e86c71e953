"""Commands under faults: the n-th call that a command makes on paths below a folder fails, or ends the whole job."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from helpers.paths import ROOT, TESTS

FAULTS = TESTS / "faults"
CALLS = ("open", "read", "write", "fsync", "rename", "mkdir", "unlink", "ftruncate", "fallocate")
"""By their plain names: openat, pread, renameat and the rest are counted with them."""
LIMIT = 120.0
"""Seconds, after which a job counts as hung."""
ERRORS = ("EIO", "ENOSPC", "EROFS", "ESTALE", "short")


class Fault(NamedTuple):
    """What happens to the n-th call, from 1; with n = 0 nothing, and calls are only counted."""

    below: Path
    n: int = 0
    action: str = "EIO"
    """Name of an errno; `short` for half a write; `kill` for SIGKILL to the job; `none` only lists the calls."""
    from_then_on: bool = False
    calls: tuple[str, ...] = CALLS
    kill_after: float | None = None
    """Seconds after which the job has SIGKILL, whatever it is at."""


class Ended(NamedTuple):
    code: int
    calls: int
    """That were made, up to the end."""
    failed: list[str]
    """Number, name and path of each call that failed."""
    noticed: float | None
    """Seconds from the first call that failed to the end; None if none failed."""
    hung: bool
    """Whether it had to be ended, as it took longer than `LIMIT`."""
    printed: str

    @property
    def errors(self) -> list[str]:
        """The lines that say why the command ended."""
        return [line for line in self.printed.splitlines() if line.startswith("error: ")]


def build_shim(folder: Path) -> Path:
    """Compiles tests/faults/shim.c."""
    library = folder / "shim.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library)]
    subprocess.run([os.environ.get("CC", "gcc"), *flags, str(FAULTS / "shim.c"), "-ldl"], check=True)
    return library


class Driver:
    """tests/faults/driver.py, running: a command takes a third of a second, in a process forked from a warm one.

    `warm` is asked of each command once, before `run`.
    """

    def __init__(self, folder: Path) -> None:
        self._printed, self._own = folder / "printed.txt", folder / "driver.txt"
        path = os.pathsep.join([str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"LD_PRELOAD": str(build_shim(folder)), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        with self._own.open("w") as own:
            self._process = subprocess.Popen(
                [sys.executable, str(FAULTS / "driver.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=own,
                env=environment,
                text=True,
            )

    def warm(self, command: str, *arguments: object) -> None:
        """Runs a command in the driver's own process."""
        assert self._ask(command, arguments, None)["code"] in (0, None)

    def run(self, command: str, *arguments: object, fault: Fault) -> Ended:
        """Runs a command under a fault, in a process of its own."""
        actions = {"none": 0, "short": -1, "kill": -2}
        settings = {
            "below": str(fault.below),
            "calls": " ".join(fault.calls),
            "n": fault.n,
            "from_then_on": fault.from_then_on,
            "kill_after": fault.kill_after,
            "action": actions[fault.action] if fault.action in actions else getattr(errno, fault.action),
        }
        self._printed.write_text("")
        answer = self._ask(command, arguments, settings)
        return Ended(**answer, printed=self._printed.read_text(errors="replace"))

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, command: str, arguments: tuple, fault: dict | None) -> dict:
        case = {
            "command": command,
            "arguments": [*map(str, arguments)],
            "fault": fault,
            "printed": str(self._printed),
            "seconds": LIMIT,
        }
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the driver has ended: {self._own.read_text()[-2000:]}"
        return json.loads(answer)
