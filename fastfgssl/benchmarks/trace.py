"""Chrome traces of what is measured, and what is read from them: the time of a step by part, and its memory."""

from __future__ import annotations

import bisect
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fastfgssl.training.metrics import synchronise

PARTS = ("forward", "loss", "backward", "optimizer")  # the ranges that updates and the step name
_WORK = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of what a GPU does
_LAUNCHES = ("cuda_runtime", "cuda_driver")


@dataclass(frozen=True)
class Traces:
    """Chrome traces of cases, in a folder; None wants none."""

    folder: Path | None = None

    def file(self, name: str) -> Path | None:
        """Where the trace of the case `name` belongs; None if no traces are wanted."""
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / (re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") + ".json")

    def call(self, name: str, case: Callable[[], Any], device: torch.device) -> None:
        """Makes the trace of one call of `case`, if traces are wanted.

        On a GPU the case is run once more with NVTX ranges, which Nsight Systems shows.
        """
        if (file := self.file(name)) is None:
            return
        if device.type == "cuda":
            with nvtx_ranges(name):
                case()
                synchronise(device)
        # calls of Python too: DALI's graphs and the reader have no operation of torch to show
        write_trace(file, case, device, with_stack=True)


def write_trace(file: Path, case: Callable[[], Any], device: torch.device, **options: Any) -> None:
    """Writes the trace of one call of `case`; options: of torch's profiler, such as profile_memory."""
    with profiler(device, **options) as started:
        case()
        synchronise(device)
    started.export_chrome_trace(str(file))


def profiler(device: torch.device, **options: Any) -> profile:
    """torch's profiler of the host, and of the device if that is a GPU."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    return profile(activities=activities, **options)


@contextmanager
def nvtx_ranges(name: str) -> Iterator[None]:
    """Within the body each operation is an NVTX range, and the whole one called `name`; on a GPU only."""
    with torch.cuda.profiler.profile(), torch.autograd.profiler.emit_nvtx(), torch.cuda.nvtx.range(name):
        yield


def seconds_by_part(file: Path, *, steps: int = 1) -> dict[str, float]:
    """Seconds of each part of a step, from the trace of `steps` of them: `PARTS`, and "communication" if there is any.

    On a CPU a part takes from its range's begin to its end. On a GPU it takes what the device is busy with work that
    was launched meanwhile, by whichever thread: backward's kernels come from a thread of autograd.

    Communication is the time while at least one collective that began in a part is under way, as the kernels of NCCL
    or the events of gloo tell; this includes waiting for the other ranks. On a CPU it lies inside the parts, mostly in
    backward, which goes on computing meanwhile; on a GPU it is not counted in them, but can run at the same time.

    A trace by torch's schedule also tells how long a whole step took, under the profiler: "step".
    """
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("ph") == "X"]
    ranges = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"] in PARTS
    )
    begins = [begin for begin, _, _ in ranges]

    def part_at(moment: float) -> str | None:
        place = bisect.bisect_right(begins, moment) - 1
        return ranges[place][2] if place >= 0 and moment <= ranges[place][1] else None

    busy: dict[str | None, list[tuple[float, float]]] = defaultdict(list)
    work = [event for event in events if event.get("cat") in _WORK]
    if not work:
        for begin, end, name in ranges:
            busy[name].append((begin, end))
    launched = {event["args"].get("correlation"): event["ts"] for event in events if event.get("cat") in _LAUNCHES}
    for event in work:
        part = part_at(launched.get(event["args"].get("correlation"), float("-inf")))
        is_collective = part is not None and event["name"].startswith("nccl")
        busy["communication" if is_collective else part].append((event["ts"], event["ts"] + event["dur"]))
    for event in events:
        if event["name"].startswith("gloo:") and part_at(event["ts"]):
            busy["communication"].append((event["ts"], event["ts"] + event["dur"]))
    for event in events:
        if event.get("cat") == "user_annotation" and event["name"].startswith("ProfilerStep#"):
            busy["step"].append((event["ts"], event["ts"] + event["dur"]))
    return {name: _covered(busy[name]) / 1e6 / steps for name in (*PARTS, "communication", "step") if name in busy}


def peak_memory(file: Path) -> int:
    """The most bytes that torch's allocator on the host held beside those from before, in a trace with its events."""
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    on_host = [event for event in events if event["args"]["Device Type"] == 0]
    held = peak = 0
    for event in sorted(on_host, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def _covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of `intervals`."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
