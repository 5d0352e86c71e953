"""What a training step consists of: its time by part, its operations against the machine's rate, its memory."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastfgssl.benchmarks.measure import interleaved, memory_of_call
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

    (seconds,) = interleaved({"step": call}, runs=1, device=device)["step"]
    with FlopCounterMode(display=False) as counter:
        call()
    operations = counter.get_total_flops()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        write_trace(file, call, device)
        parts = seconds_by_part(file)
        step.optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            memory = memory_of_call(call, device)
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


def _matrix_product_rate(dtype: torch.dtype, device: torch.device) -> float:
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = interleaved({"product": lambda: a @ b}, runs=5, device=device)
    return 2 * side**3 / statistics.median(seconds["product"])
