"""How every suite measures: checked first, interleaved, medians with their spread, next to a baseline and a limit."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastfgssl.benchmarks.trace import Traces
from fastfgssl.runtime.versions import versions
from fastfgssl.training.metrics import synchronise

Case = Callable[[], Any]


class CheckFailed(Exception):
    """A benchmark's results are wrong: it has no speed."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured case. Values are rates: more is better."""

    suite: str
    case: str
    value: float
    unit: str
    baseline: str
    baseline_value: float
    ratio: float
    """value / baseline_value: above 1, ours is faster."""
    limit: str
    limit_value: float
    fraction_of_limit: float
    runs: int
    """Measurements of each kind whose medians the values are, and pairs whose median the ratio is."""
    spread: float
    """Interquartile range of the ratio over these pairs: how far the machine's noise reaches."""
    device: str
    versions: dict[str, str]
    details: dict[str, float] = field(default_factory=dict)
    """Further numbers of the case, by name and unit; seconds and bytes unless the name says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What suites are run with; each takes what concerns it."""

    device: torch.device
    archive: Path | None = None
    """Images to read instead of phantoms of 600 x 450."""
    index_samples: int = 100_000_000
    """Length of the index that is opened."""
    traces: Traces = field(default_factory=Traces)
    rehearse: bool = False
    """Tiny sizes, each case once: whether everything runs. The numbers mean nothing."""

    @property
    def scale(self) -> str:
        """Which of a suite's sizes to take: "rehearsal", or those of the device, "cpu" or "cuda"."""
        return "rehearsal" if self.rehearse else self.device.type


def interleaved(cases: Mapping[str, Case], *, runs: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call of each case: all of them in turn, `runs` times, after one round that is not counted."""
    clock = _gpu_seconds if device.type == "cuda" else _host_seconds
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(runs + 1):
        for name, case in cases.items():
            took = clock(case, device)
            if turn:
                seconds[name].append(took)
    return seconds


def replayed(case: Case, device: torch.device) -> Case:
    """On a GPU a replay of what `case` launches, as one CUDA graph: its time is the device's, whatever the host takes.

    On a CPU `case` itself. The case must wait for nothing; its results are dropped.
    """
    if device.type != "cuda":
        return case
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # sets up what libraries choose by trying, which cannot be captured
            case()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case()
    return graph.replay


def host_seconds(case: Case, device: torch.device, *, calls: int = 10) -> float:
    """What the host takes to launch a call, the median."""
    seconds = []
    for _ in range(calls):
        synchronise(device)
        seconds.append(_host_seconds(case, device))
    return statistics.median(seconds)


def _host_seconds(case: Case, device: torch.device) -> float:
    start = time.perf_counter()
    case()
    return time.perf_counter() - start


def _gpu_seconds(case: Case, device: torch.device) -> float:
    """What the device takes, by its own clock, from a second-level cache without the case's data.

    While it overwrites the cache, the host launches ahead: some launches are as free as they are in training, where
    the device is behind the host.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronise(device)
    _cache_filler(device).zero_()
    begin.record()
    case()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


@cache
def _cache_filler(device: torch.device) -> torch.Tensor:
    """Several times what the second-level cache holds."""
    size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device=device)


@cache
def ceilings(device: torch.device) -> dict[str, float]:
    """What this GPU itself can do: bytes/s of a large copy, read and written, and operations/s of matrix products."""
    source, target = (torch.ones(1 << 30, dtype=torch.uint8, device=device) for _ in range(2))
    seconds: dict[str, tuple[Case, int]] = {"copy": (lambda: target.copy_(source), 2 * source.numel())}
    side = 8192
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

        def product(a: torch.Tensor = a, b: torch.Tensor = b, tf32: bool = tf32) -> None:
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = tf32
            _ = a @ b
            torch.backends.cuda.matmul.allow_tf32 = before

        seconds[name] = (product, 2 * side**3)
    times = interleaved({name: case for name, (case, _) in seconds.items()}, runs=7, device=device)
    rates = {name: amount / statistics.median(times[name]) for name, (_, amount) in seconds.items()}
    return {
        "device_copy_bytes_per_second": rates.pop("copy"),
        **{f"device_{name}_operations_per_second": rate for name, rate in rates.items()},
    }


@dataclass(frozen=True)
class Suite:
    """Makes the records of a suite."""

    name: str
    settings: Settings

    @property
    def device(self) -> torch.device:
        return self.settings.device

    @property
    def scale(self) -> str:
        return self.settings.scale

    def on_host(self) -> Suite:
        """The same for what no GPU takes part in."""
        return replace(self, settings=replace(self.settings, device=torch.device("cpu")))

    def compare(
        self,
        case: str,
        *,
        ours: Case,
        baseline: tuple[str, Case],
        limit: tuple[str, Case],
        items: float,
        unit: str,
        runs: int,
        details: Mapping[str, float] | None = None,
    ) -> Record:
        """Measures `ours` beside a baseline and a limit, which are (name, call); each call makes `items` items."""
        calls = {"ours": ours, "baseline": baseline[1], "limit": limit[1]}
        seconds = interleaved(calls, runs=1 if self.settings.rehearse else runs, device=self.device)
        self.settings.traces.call(f"{self.name}: {case}", ours, self.device)
        named = {"baseline": baseline[0], "limit": limit[0]}
        return self.record(case, seconds, **named, items=items, unit=unit, details=details)

    def record(
        self,
        case: str,
        seconds: Mapping[str, list[float]],
        *,
        baseline: str,
        limit: str,
        items: float = 1,
        unit: str,
        details: Mapping[str, float] | None = None,
    ) -> Record:
        """The record of `seconds` for `items` items, of "ours", "baseline" and "limit", run by run."""
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["baseline"], strict=True)]
        value, baseline_value, limit_value = (
            items / statistics.median(seconds[name]) for name in ("ours", "baseline", "limit")
        )
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [0, 0, 0]
        return Record(
            suite=self.name,
            case=case,
            value=value,
            unit=unit,
            baseline=baseline,
            baseline_value=baseline_value,
            ratio=statistics.median(ratios),
            limit=limit,
            limit_value=limit_value,
            fraction_of_limit=value / limit_value,
            runs=len(ratios),
            spread=quartiles[2] - quartiles[0],
            device=describe_device(self.device),
            versions=versions(),
            details={**(details or {}), **(ceilings(self.device) if self.device.type == "cuda" else {})},
        )


def memory_of_call(case: Case, device: torch.device) -> int:
    """The most bytes that torch holds on a GPU during a call beside those from before it."""
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    case()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before


def copies(moved: int, device: torch.device, times: int = 1) -> Case:
    """Copies that read and write `moved` bytes together, `times` over."""
    source, target = (torch.ones(moved // 2, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: [target.copy_(source) for _ in range(times)]


def require_close(name: str, got: torch.Tensor, want: torch.Tensor, *, tolerance: float) -> None:
    """Raises `CheckFailed` unless the relative error of `got` against `want` is at most `tolerance`."""
    error = ((got.double() - want.double()).norm() / want.double().norm()).item()
    if not error <= tolerance:
        raise CheckFailed(f"{name}: relative error {error:.2e}, allowed {tolerance:.2e}")


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {_processor()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
