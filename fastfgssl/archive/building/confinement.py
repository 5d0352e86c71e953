"""What a worker may take while it decodes what strangers wrote, and say."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa


def limit_memory(more: int) -> None:
    """Limits the memory of this process, beyond which there is a MemoryError, to what it has and `more` bytes."""
    pa.allocate_buffer(1)  # its pool reserves a GiB at its first use, which would count
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # of data and stack
    limit = pages * resource.getpagesize() + more
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what C libraries write to file descriptor 2 off the user's screen: the accounting tells it better."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
