"""Where a run comes from: its resolved configuration, and for each start the command, versions and machine."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastfgssl import __version__
from fastfgssl.config.files import write_config
from fastfgssl.runtime.errors import file_errors
from fastfgssl.runtime.files import write_whole
from fastfgssl.runtime.versions import versions
from fastfgssl.training.cost import read_starts
from fastfgssl.training.hooks import NEVER, Hook, Moment, Run, spared

log = logging.getLogger(__name__)


class Provenance(Hook):
    """Writes config.yaml, and adds an object to the list in provenance.json."""

    every = NEVER

    def begin(self, run: Run) -> None:
        if not run.world.is_main:
            return
        config, history = run.output / "config.yaml", run.output / "provenance.json"
        # a run that goes on has a configuration: a disk that is full by now is no reason to end it
        errors = partial(file_errors, "write") if run.is_new else spared
        with errors(config):
            config.parent.mkdir(parents=True, exist_ok=True)
            write_config(run.config, config)
        with errors(history):
            starts = [*read_starts(history), describe_start(run)]
            _warn_of_ranks(run, starts)
            write_whole(history, lambda file: file.write((json.dumps(starts, indent=1) + "\n").encode()))

    def __call__(self, moment: Moment) -> None:
        pass


def _warn_of_ranks(run: Run, starts: list[dict[str, Any]]) -> None:
    """Says so where a run goes on with batch norms that see another share of the same batches."""
    if run.is_new or len(starts) < 2 or run.config.train.batch_norm != "local":
        return
    before, now = starts[-2].get("ranks", run.world.size), run.world.size
    if before != now:
        log.warning(
            "the run was on %s rank(s) and is on %d now: its batches stay the same, but with train.batch_norm=local"
            " each batch norm sees another share of them, so that losses differ",
            before,
            now,
        )


def describe_start(run: Run) -> dict[str, Any]:
    """What this start of a run is made with."""
    device = run.world.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": run.start,
        "command": sys.orig_argv,  # sys.argv is what our own dispatch has made of it
        "fastfgssl": __version__,
        "commit": _commit(),
        "packages": versions(),
        "ranks": run.world.size,
        "device": name,
    }


def _commit() -> str | None:
    """Of the checkout that the program runs from, with a plus if it has changes; None where it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
