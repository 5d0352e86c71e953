"""A rank among others, one of which is lost at step 3; run by runtime/test_heartbeat.py.

python lost_rank.py SIGNAL RANK; RANK sends itself SIGNAL then.
"""

from __future__ import annotations

import os
import sys
import time

import torch

from fastfgssl.runtime.agreement import lost_ranks, mean_over_ranks
from fastfgssl.runtime.console import log_to, make_console, run_tool
from fastfgssl.runtime.distributed import set_timeout, start_world


def main() -> None:
    log_to(make_console(stderr=True))
    number, lost = map(int, sys.argv[1:])
    with start_world("cpu") as world, world.heartbeats.naming_lost_ranks(), lost_ranks("adding up"):
        set_timeout(world, 2)
        for step in range(1, 6):
            world.heartbeats.at("making step", step)
            if step == 3 and world.rank == lost:
                time.sleep(0.5)  # what it is at is told by then
                print(time.time(), flush=True)
                os.kill(os.getpid(), number)
            mean_over_ranks(torch.ones(1, dtype=torch.float64), world)


if __name__ == "__main__":
    run_tool(main)
