"""What a training step consists of: its time by part, its operations against the machine's rate, its memory."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

PARTS = ("forward", "loss", "backward", "optimizer")  # the ranges that `updates.py` and the step name


def anatomy(step: Callable[[], Any], precision: str, device: torch.device) -> dict[str, float]:
    """Seconds of each part of one `step`, its operations and their rate, that of a matrix product, and peak memory.

    Operations are those of convolutions and matrix products, a multiplication and an addition counted as two. Memory
    is on a GPU what a step takes at most beside what is there before it, on a CPU what the process ever took.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    seconds = _seconds(step, device)
    memory = (
        torch.cuda.max_memory_allocated(device) - before
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    )
    with FlopCounterMode(display=False) as counter:
        step()
    operations = counter.get_total_flops()
    details = {
        "operations": operations,
        "operations_per_second": operations / seconds,
        "matrix_product_operations_per_second": _matrix_product_rate(getattr(torch, precision), device),
        "peak_memory_of_a_step" if on_gpu else "peak_memory_of_the_process": memory,
    }
    return details | _parts(step, device)


def _parts(step: Callable[[], Any], device: torch.device) -> dict[str, float]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    events = {event.key: event for event in profile.key_averages() if event.key in PARTS}
    if device.type == "cuda":
        return {f"seconds_{name}": event.device_time_total / 1e6 for name, event in events.items()}
    return {f"seconds_{name}": event.cpu_time_total / 1e6 for name, event in events.items()}


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
