"""Signals to runs: the first is a request, a second ends at once, and a launcher that is gone takes its ranks along."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastfgssl.config.files import write_config
from fastfgssl.runtime.signals import signals_wait
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.sinks import read_metrics
from helpers.paths import TOOLS
from helpers.runs import wait_for_steps
from helpers.waiting import wait_until

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]

# A program that is told to stop while its main thread waits in C, where no Python runs.
STUCK = """
import ctypes, threading, time
from fastfgssl.runtime.signals import StopRequest

def tell(request):
    while request.signal_number is None:
        time.sleep(0.01)
    print("asked", int(request.signal_number), flush=True)

with StopRequest() as request:
    threading.Thread(target=tell, args=[request], daemon=True).start()
    print("ready", flush=True)
    ctypes.CDLL(None).system(b'exec sleep 20 >&- 2>&-')  # which no signal interrupts
"""


def start(*command, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def ranks_of(output: Path) -> list[int]:
    """The processes that were started for a run, by what their command line says."""
    found = subprocess.run(["pgrep", "-f", f"train.py .*output={output}$"], capture_output=True, text=True).stdout
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in found.split()}
    return [pid for pid, words in commands.items() if b"torch.distributed.run" not in words]


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended: whoever has inherited it may not have asked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_signals_wait_for_the_end_of_what_would_take_them_for_its_own():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    done = []

    def work() -> None:
        with signals_wait():
            signal.raise_signal(signal.SIGINT)
            done.append("work")

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["work"]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_second_signal_ends_at_once_wherever_the_program_waits(number):
    process = start(sys.executable, "-c", STUCK)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"asked {number:d}\n"
    process.send_signal(number)  # as torchrun passes on what a terminal sent already
    time.sleep(2.5)
    assert process.poll() is None
    (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    wait_until(lambda: not is_running(child))
    assert errors == f"ended at once by a second {number.name}\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_ranks_whose_launcher_is_gone_save_and_end(make_config, tmp_path, number):
    config = make_config(train__steps=5000, train__heads=[0])
    write_config(config, tmp_path / "config.yaml")
    output = Path(config.output)
    launcher = start(
        *TORCHRUN,
        "--nproc-per-node=2",
        TOOLS / "train.py",
        *("--config", tmp_path / "config.yaml"),
        *("train.checkpoint_every=5000", f"output={output}"),
    )
    wait_for_steps(output, 2, launcher)
    ranks = ranks_of(output)
    assert len(ranks) == 2
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=120)  # returns when its pipes are closed, which its ranks have too
    wait_until(lambda: not any(is_running(rank) for rank in ranks))
    done = int(re.search(r"stopped after step (\d+) of 5000", out)[1])
    assert load_checkpoint(list_checkpoints(output / "checkpoints")[-1])["step"] == done
    assert read_metrics(output)[-1]["step"] == done


def test_torchrun_starts_ranks_anew_that_lost_one_and_they_go_on(make_config, tmp_path):
    config = make_config(train__steps=60, train__heads=[0], train__checkpoint_every=5)
    write_config(config, tmp_path / "config.yaml")
    output = Path(config.output)
    launcher = start(
        *TORCHRUN,
        *("--nproc-per-node=2", "--max-restarts=1", TOOLS / "train.py"),
        *("--config", tmp_path / "config.yaml", f"output={output}"),
    )
    wait_for_steps(output, 2, launcher)
    os.kill(ranks_of(output)[1], signal.SIGKILL)
    out, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, errors[-3000:]
    assert [record["step"] for record in read_metrics(output)] == list(range(1, 61))
    assert "cost: 60 steps in 2 starts" in out
