"""What a training step consists of: its time by part, its operations against the machine's rate, its memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastfgssl.benchmarks.trace import peak_memory, seconds_by_part, write_trace
from fastfgssl.data.batch import Batch
from fastfgssl.training.step import TrainingStep


def anatomy(step: TrainingStep, batch: Batch, precision: str, device: torch.device) -> dict[str, float]:
    """Seconds of each part of `step` on `batch`, its operations and their rate, a matrix product's, and peak memory.

    Operations are those of convolutions and matrix products, a multiplication and an addition counted as two. Memory is
    the most that torch's allocator holds during a step beside images, weights and the optimiser's state. What parts
    are is said in `trace.seconds_by_part`; one process has no communication.
    """

    def call() -> None:
        step(batch)

    seconds = _seconds(call, device)
    with FlopCounterMode(display=False) as counter:
        call()
    operations = counter.get_total_flops()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        write_trace(file, call, device)
        parts = seconds_by_part(file)
        step.optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            memory = _peak_memory_of_gpu(call, device)
        else:
            write_trace(file, call, device, profile_memory=True)
            memory = peak_memory(file)
    return {
        "operations": operations,
        "operations_per_second": operations / seconds,
        "matrix_product_operations_per_second": _matrix_product_rate(getattr(torch, precision), device),
        "peak_memory_of_a_step": memory,
        **{f"seconds_{name}": value for name, value in parts.items()},
    }


def _peak_memory_of_gpu(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _matrix_product_rate(dtype: torch.dtype, device: torch.device) -> float:
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / statistics.median(_seconds(lambda: a @ b, device) for _ in range(5))


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
