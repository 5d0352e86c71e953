"""A rank that ends alone in the middle of a step tells why and is gone; the others do not wait for it for ever."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from helpers.command import Command
from helpers.paths import ROOT

SCRIPT = ROOT / "tests" / "helpers" / "dying_rank.py"
SLOW = pytest.mark.slow
SOON = 30.0  # seconds on a busy machine; a rank that waits for another waits for a thousand


def start_ranks(how: str, archive_path, output) -> list[Command]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(2):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
        ranks.append(Command(SCRIPT, how, archive_path, output, environment=environment))
    return ranks


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        pytest.param("raise", 1, r"Traceback[\s\S]*RuntimeError: a defect of the program\n$", marks=SLOW),
        ("user_error", 2, r"^error: rank 1: a sample that nobody foresaw\n$"),
        pytest.param(
            "memory", 2, r"^error: rank 1: out of memory while making step 3: lower train.batch_size.*\n$", marks=SLOW
        ),
        ("kill", -signal.SIGKILL, ""),
        pytest.param("kill_early", -signal.SIGKILL, "", marks=SLOW),
    ],
)
def test_a_rank_that_dies_alone_tells_why_and_is_gone(how, code, said, archive_path, tmp_path):
    first, dying = start_ranks(how, archive_path, tmp_path / "run")
    out, err = dying.communicate(timeout=240)
    ended = time.time()
    assert dying.returncode == code, err
    assert ended - float(re.search(r"leaving at ([\d.]+)", out)[1]) < SOON
    assert re.search(said, err), err
    _, err = first.communicate(timeout=SOON)
    assert first.returncode == 75
    doing = "starting" if how == "kill_early" else "making step 3"
    table, said = err.rsplit("\nerror: ", 1)
    assert re.match(
        rf"another rank is gone or did not answer while {doing}: .+; rank 1 stopped, last heard {doing}.*\n$", said
    ), err
    assert re.search(rf"\n +0 +\d+  {doing.partition(' 3')[0]} [\s\S]*\n +1 +\d+  {doing.partition(' 3')[0]} ", table)
    assert "Traceback" not in err


def test_a_rank_that_hangs_is_waited_for_as_long_as_was_said(archive_path, tmp_path):
    first, hanging = start_ranks("stop", archive_path, tmp_path / "run")
    try:
        _, err = first.communicate(timeout=240)
        assert first.returncode == 75, err
        last = err.splitlines()[-1]
        assert re.match(r"error: waited \d+ s, making step at step 3, for another rank: rank 1 stopped", last)
        assert re.search(r"rank 1 stopped, last heard making step 3 with samples (\d+, )+\.\.\. \(\d+ s\)$", last)
        assert re.search(r"ranks wait for 1:\n", err)
    finally:
        hanging.kill()
        out, _ = hanging.communicate()
    assert 3.5 < time.time() - float(re.search(r"leaving at ([\d.]+)", out)[1]) < SOON


def test_the_launcher_is_told(archive_path, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    done = subprocess.run(
        [*command, "user_error", str(archive_path), str(tmp_path / "run")], capture_output=True, text=True, timeout=240
    )
    assert done.returncode != 0
    assert "error: rank 1: a sample that nobody foresaw" in done.stderr
    assert not subprocess.run(["pgrep", "-f", f"{SCRIPT.name}.*{tmp_path}"], capture_output=True, text=True).stdout
