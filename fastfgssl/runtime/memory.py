"""What is said where memory does not suffice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastfgssl.runtime.errors import UserError

_FAILED_ALLOCATION = re.compile(r"can't allocate|(not enough|out of) memory|alloc(ation)?[_ ]failed|bad_alloc", re.I)


class OutOfMemory(UserError):
    """The device or the machine has no memory for what the configuration asks."""


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turns a failed allocation in the body, by torch or DALI, into `OutOfMemory` that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory while {what}: lower train.batch_size, data.image_size or data.prefetch, or raise"
            " train.accumulate, which splits a step's batch"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch has an exception for it on a GPU alone, elsewhere the message tells."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return _FAILED_ALLOCATION.search(str(error)) is not None
