"""Training runs: what they leave behind, and waiting for those that go on beside the test."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import torch

from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.sinks import read_metrics
from helpers.command import Command


def losses(output) -> list[dict]:
    """The losses of each logged step: what must not depend on how a run came to it."""
    return [
        {name: value for name, value in record.items() if name == "step" or name.startswith("loss")}
        for record in read_metrics(Path(output))
        if "loss" in record
    ]


def trained_change(output: str) -> torch.Tensor:
    """How far training moved all parameters, as one vector."""
    first, *_, last = list_checkpoints(Path(output) / "checkpoints")
    before, after = (load_checkpoint(path)["model"] for path in (first, last))
    learned = [name for name in before if not re.search("running|num_batches", name)]
    return torch.cat([(after[name] - before[name]).flatten() for name in learned])


def wait_for_steps(output: Path, count: int, process: subprocess.Popen | Command) -> None:
    for _ in range(1200):
        path = output / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("the run made no step")
