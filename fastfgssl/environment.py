"""What the launcher and the machine tell a process: its place among the ranks, and the cores that it may use."""

from __future__ import annotations

import os
from typing import NamedTuple


class RankEnvironment(NamedTuple):
    """This process among the ranks that torchrun started; a process on its own is rank 0 of 1."""

    rank: int
    size: int
    local_rank: int  # among those of this machine
    local_size: int


def rank_environment() -> RankEnvironment:
    """Reads torchrun's variables."""
    read = os.environ.get
    return RankEnvironment(
        rank=int(read("RANK", "0")),
        size=int(read("WORLD_SIZE", "1")),
        local_rank=int(read("LOCAL_RANK", "0")),
        local_size=int(read("LOCAL_WORLD_SIZE", "1")),
    )


def available_cores() -> int:
    """Processor cores that this process may use, which a scheduler may have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
