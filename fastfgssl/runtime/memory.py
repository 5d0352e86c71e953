"""How much memory this machine could still give, and what is said where it does not suffice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import torch

from fastfgssl.runtime.errors import UserError

_UNLIMITED = 2**60  # version 1 says "no limit" by a number near 2^63

# file names of a group's limit, its use, and the key in memory.stat of what would be given back at once
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")

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


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this machine could still give, or a control group of this process if that is less.

    Limits sit at any level: a container's at the root that it sees, a Slurm job's at a group above that of its step.
    root: of the file system whose /proc and /sys are read.
    """
    meminfo = (root / "proc/meminfo").read_text()
    available = int(re.search(r"MemAvailable:\s+(\d+)", meminfo)[1]) * 1024
    return max(0, min([available, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left to each group with a limit that this process is in, of both versions of control groups."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, names = root / "sys/fs/cgroup", _VERSION_2
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", _VERSION_1
        else:
            continue
        # in a container the path may be the host's, of which only the mount itself is there to see
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            yield from _left(mount / group, *names)


def _left(group: Path, limit_file: str, usage_file: str, reclaimable_key: str) -> Iterator[int]:
    limit, usage = _number(group / limit_file), _number(group / usage_file)
    if limit is None or usage is None or limit >= _UNLIMITED:
        return
    reclaimable = re.search(rf"^{reclaimable_key} (\d+)", _text(group / "memory.stat"), re.MULTILINE)
    yield limit - usage + (int(reclaimable[1]) if reclaimable else 0)


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
