"""A warm process that runs commands under faults: it has run each once, and forks for each case.

Started with the shim between it and the C library. A line of JSON in: what to run, and what is to fail; a line out: how
it ended. What a command prints goes into a file. A case without a fault is run in this process itself: what it imports
and compiles, those that are forked later have.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing.forkserver
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

import torch
from torch.utils import tensorboard  # noqa: F401 - what a run imports late

from fastfgssl.commands import finetune, prepare, train
from fastfgssl.runtime import patience

MAINS = {"train": train.main, "finetune": finetune.main, "prepare": prepare.main}


def run(shim: ctypes.CDLL, case: dict[str, Any]) -> dict[str, Any]:
    if case["fault"] is None:
        sys.argv = [f"fastfgssl {case['command']}", *case["arguments"]]
        return {"code": MAINS[case["command"]]()}
    gc.freeze()  # so that a collection of the child does not copy all that it has of its parent
    child = os.fork()
    if not child:
        _become(shim, case)
    status, is_hung = _ended(child, case["fault"]["kill_after"], case["seconds"])
    ended = time.monotonic()
    shim.faults_disarm()
    struck = shim.faults_struck_at() / 1e9
    log = shim.faults_log().decode(errors="replace").splitlines()
    return {
        "code": os.waitstatus_to_exitcode(status),
        "calls": shim.faults_count(),
        "failed": log,
        "noticed": ended - struck if struck else None,
        "hung": is_hung,
    }


def _ended(child: int, kill_after: float | None, seconds: float) -> tuple[int, bool]:
    """The status of a job that has ended, or was killed: when it is to be, or for it took too long, which is told."""
    begin, is_killed = time.monotonic(), False
    until = begin + (seconds if kill_after is None else kill_after)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status, is_killed and kill_after is None
        if not is_killed and time.monotonic() >= until:
            is_killed = True
            with suppress(ProcessLookupError, PermissionError):  # it has ended meanwhile, or is not yet a group
                os.killpg(child, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _become(shim: ctypes.CDLL, case: dict[str, Any]) -> None:
    from fastfgssl.runtime.console import run_tool

    os.setpgid(0, 0)  # what a kill ends
    output = os.open(case["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [f"fastfgssl {case['command']}", *case["arguments"]]
    fault = case["fault"]
    shim.faults_arm(
        os.fsencode(fault["below"]),
        f" {fault['calls']} ".encode(),
        ctypes.c_long(fault["n"]),
        fault["from_then_on"],
        fault["action"],
    )
    try:
        run_tool(MAINS[case["command"]])
    except SystemExit as ended:
        os._exit(ended.code)  # the end of an interpreter that has imported all this takes seconds


def _fork_workers() -> None:
    """Workers of prepare are forked from the command itself: a server for that would be one more process to warm."""
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork
    multiprocessing.set_forkserver_preload = lambda modules: None
    multiprocessing.forkserver.ensure_running = lambda: None


def main() -> None:
    patience.PAUSES = (0.0, 0.0, 0.0)
    torch.set_num_threads(1)  # a fork has none of the threads of its parent
    _fork_workers()
    shim = ctypes.CDLL(None)
    shim.faults_log.restype = ctypes.c_char_p
    shim.faults_count.restype = shim.faults_struck_at.restype = ctypes.c_long
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a command prints is no answer
    for line in sys.stdin:
        print(json.dumps(run(shim, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
