"""Where a run comes from: its resolved configuration, and for each start the command, versions and machine."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastfgssl import __version__
from fastfgssl.config.files import write_config
from fastfgssl.runtime.errors import file_errors
from fastfgssl.runtime.files import write_whole
from fastfgssl.runtime.versions import versions
from fastfgssl.training.hooks import NEVER, Hook, Moment, Run


class Provenance(Hook):
    """Writes config.yaml, and adds an object to the list in provenance.json."""

    every = NEVER

    def begin(self, run: Run) -> None:
        if not run.world.is_main:
            return
        config, history = run.output / "config.yaml", run.output / "provenance.json"
        with file_errors("write", config):
            config.parent.mkdir(parents=True, exist_ok=True)
            write_config(run.config, config)
        with file_errors("write", history):
            starts = [*_read(history), describe_start(run)]
            write_whole(history, lambda file: file.write((json.dumps(starts, indent=1) + "\n").encode()))

    def __call__(self, moment: Moment) -> None:
        pass


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


def _read(history: Path) -> list[Any]:
    try:
        starts = json.loads(history.read_text())
    except (FileNotFoundError, ValueError):  # none yet, or not ours: a record is not worth a run
        return []
    return starts if isinstance(starts, list) else []


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
