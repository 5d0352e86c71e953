"""Work is spread over processes, comes back in order, and leaves no process behind however it ends."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastfgssl.archive.workers import AHEAD, in_order
from fastfgssl.runtime.errors import UserError
from helpers.images import encode, gradient, write_files
from helpers.paths import TOOLS

TOOL = TOOLS / "prepare.py"


def living(session: int) -> list[int]:
    """Processes of a session that have not ended (a zombie has)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # gone meanwhile
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_interrupt_leaves_no_archive_and_no_processes(tmp_path):
    source = write_files(tmp_path / "source", {"0.png": encode(gradient(300, 300), "PNG")})
    for i in range(1, 2000):
        (source / f"{i}.png").symlink_to(source / "0.png")
    command = [sys.executable, TOOL, source, "--out", tmp_path / "archive", "--workers", "2", "--shard-size", "0.01"]
    run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: run.poll() is not None or list(tmp_path.glob("archive.partial/shards/*.idx")))
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, errors = run.communicate(timeout=20)
    assert (run.returncode, errors) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    wait_until(lambda: not living(run.pid))


def test_workers_end_when_their_parent_is_killed():
    program = """
import time
from fastfgssl.archive.workers import in_order
for _ in in_order(time.sleep, [0.1] * 999, workers=2):
    print("working", flush=True)
"""
    command = [sys.executable, "-c", program]
    run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "working\n"
    assert len(living(run.pid)) >= 3
    run.kill()
    _, errors = run.communicate()
    assert errors == ""
    wait_until(lambda: not living(run.pid))


def test_killed_worker_is_a_clear_error():
    with pytest.raises(
        UserError, match=r"^a worker was killed by SIGKILL at 9: if memory ran out, take fewer --workers"
    ):
        list(in_order(signal.raise_signal, [0, 0, signal.SIGKILL.value], workers=1))


def test_failing_worker_is_not_the_users_fault():
    with pytest.raises(RuntimeError, match="a worker failed at -1; its traceback is above"):
        list(in_order(math.factorial, [-1], workers=1))


def test_in_order_yields_in_order_and_bounds_what_is_ahead():
    class Watched(list):
        taken = 0

        def __getitem__(self, index):
            self.taken = max(self.taken, index + 1)
            return super().__getitem__(index)

    numbers = Watched([20_000, *range(99)])  # the first takes longest
    for position, result in enumerate(in_order(math.factorial, numbers, workers=2)):
        assert result == math.factorial(list(numbers)[position])
        assert numbers.taken <= position + 1 + 2 * AHEAD
    assert position == 99
