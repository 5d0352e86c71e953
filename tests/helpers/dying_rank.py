"""A rank of a training that another rank leaves in the middle of a step; run by runtime/test_dying_rank.py.

python dying_rank.py HOW DATA OUTPUT; HOW says what rank 1 does in step 3: raise, user_error, memory, stop, kill; or,
before the first step, kill_early.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
import torch.distributed

from fastfgssl.config.files import config_from_values
from fastfgssl.objectives import register
from fastfgssl.objectives.fgssl import build
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.console import run_tool
from fastfgssl.runtime.errors import UserError

torch.distributed.destroy_process_group = lambda *_: time.sleep(1000)  # as NCCL's, which waits for what never comes


def leave(how: str) -> None:
    time.sleep(0.5)  # what it was at is told by then
    print(f"leaving at {time.time()}", flush=True)
    if how == "raise":
        raise RuntimeError("a defect of the program")
    if how == "user_error":
        raise UserError("a sample that nobody foresaw")
    if how == "memory":
        torch.empty(2**60)
    os.kill(os.getpid(), {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}[how])


def build_leaving(config, world, *, fresh):
    if world.rank == 1 and sys.argv[1] == "kill_early":
        leave("kill")
    objective = build(config, world, fresh=fresh)
    compare, calls = objective.updates[0].compare, []

    def leave_in_step_3(*arguments, **options):
        calls.append(1)
        if world.rank == 1 and len(calls) == 3:
            leave(sys.argv[1])
        return compare(*arguments, **options)

    objective.updates[0].compare = leave_in_step_3
    return objective


def main() -> int:
    register("leaving", build_leaving)
    values = {
        "objective": "leaving",
        "output": sys.argv[3],
        "data.path": sys.argv[2],
        "data.image_size": 32,
        "data.threads": 1,
        "model.backbone": "resnet18",
        "model.weights": "none",
        "model.width": 0.125,
        "model.grids": [8, 4, 2],
        "model.embedding_dim": 24,
        "model.block_dim": 16,
        "train.batch_size": 12,
        "train.steps": 6,
        "train.precision": "float32",
        "train.device": "cpu",
        "train.timeout": 4,
        "train.log_every": 1,
    }
    pretrain(config_from_values(values))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_tool(main)
