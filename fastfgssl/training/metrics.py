"""What is reported of a step, and the clock that tells its rates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from fastfgssl.runtime.agreement import mean_over_ranks
from fastfgssl.runtime.distributed import World


class Lap(NamedTuple):
    steps: int
    seconds: float
    waited: float  # seconds


class Clock:
    """Measures the time between two reports, and how much of it was spent waiting for batches."""

    def __init__(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def lap(self, step: int) -> Lap:
        """Steps, seconds, and seconds of waiting since the last lap."""
        now = time.perf_counter()
        lap = Lap(step - self._step, now - self._start, self._waited)
        self._step, self._start, self._waited = step, now, 0.0
        return lap


def synchronise(device: torch.device) -> None:
    """Waits for all that a GPU was given to do: what a clock reads before says nothing of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_logs(logs: dict[str, Tensor], world: World) -> dict[str, float]:
    """The logs of a step as numbers, their mean over ranks: waits for the device, and copies once."""
    if not logs:
        return {}
    values = torch.stack([value.double() for value in logs.values()]).cpu()
    return dict(zip(logs, mean_over_ranks(values, world).tolist(), strict=True))
