"""The device of tests that only a GPU makes worth running. REHEARSE=1 runs them on the CPU, so that they run at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch

REHEARSE = os.environ.get("REHEARSE") == "1"
DEVICE_ID = None if REHEARSE else 0
GPU = torch.device("cpu") if REHEARSE else torch.device("cuda", 0)

T = TypeVar("T")


def rehearsed(cases: Sequence[T], count: int = 1) -> Sequence[T]:
    """Of the cases of a test those that are run: on a GPU all, in a rehearsal the first."""
    return cases[:count] if REHEARSE else cases


on_hardware = pytest.mark.skipif(REHEARSE, reason="means nothing on a CPU")


def gpu_case(value: object) -> object:
    """A parameter of tests that run on the CPU too, where a rehearsal need not run them again."""
    return pytest.param(value, marks=[pytest.mark.gpu, on_hardware])


@contextmanager
def never_waits() -> Iterator[None]:
    """An operation of the body for which the host would wait for the GPU is an error."""
    if REHEARSE:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
