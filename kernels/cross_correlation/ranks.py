"""What the loss exchanges between ranks: rows, sums, and whether all of them have the same arguments.

By torch's functional collectives, which know a process group by its name: operators of torch.library take no objects.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch

_collectives = torch.ops._c10d_functional


@dataclass(frozen=True)
class Ranks:
    """Where the rows of a batch are: as many on each rank of a process group."""

    group: str = ""
    """The name of the group; empty for a process on its own."""
    rank: int = 0
    size: int = 1

    def begin_gather(self, rows: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begins to gather all ranks' rows [n, ...]; the call that it returns waits for them: [size * n, ...].

        As many rows on each rank, in the order of ranks. Autograd does not see it.
        """
        if not self.group:
            return lambda: rows
        # bytes, since not every backend knows every float
        sent = rows.detach().contiguous().view(torch.uint8)
        received = _collectives.all_gather_into_tensor(sent, self.size, self.group)
        return lambda: _collectives.wait_tensor(received).view(rows.dtype)

    def all_reduce(self, values: torch.Tensor) -> None:
        """Replaces `values` by their sum over ranks."""
        if self.group:
            _collectives.wait_tensor(_collectives.all_reduce_(values, "sum", self.group))


ALONE = Ranks()

RECORD_BYTES = 256
"""What each rank sends to the others before a loss."""
HOST_WAITS_FOR = ("cpu",)
"""Devices whose collectives the host waits for anyway: to look at what arrived costs nothing there."""
_ERROR = "error: "
_agreed: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()
"""What was compared in a process group and found the same: in that one, a later group may have its name."""


def require_same(ranks: Ranks, given: str, what: str, device: torch.device) -> None:
    """Raises ValueError unless `given`, which describes a rank's arguments, is the same on all; `what` names its parts.

    All ranks exchange it at every call, and so stay in step, but on a GPU, where the host would wait for it, a rank
    compares only the first time that it has these arguments, or if FASTFGSSL_DEBUG=1. Of ranks that differ at least the
    one with new arguments then raises; the others end when that one is gone.
    """
    if not ranks.group:
        return
    received = ranks.begin_gather(_record(given, device))()
    is_free = device.type in HOST_WAITS_FOR or os.environ.get("FASTFGSSL_DEBUG") == "1"
    # releases of torch annotate it differently
    resolve: Any = torch.distributed.distributed_c10d._resolve_process_group
    agreed = _agreed.setdefault(resolve(ranks.group), set())
    if is_free or given not in agreed:
        _compare(received, ranks, what)
        agreed.add(given)


def send_error(ranks: Ranks, error: Exception, device: torch.device) -> None:
    """Takes the place of `require_same` on a rank that cannot take part: the others raise its error."""
    ranks.begin_gather(_record(f"{_ERROR}{error}", device))()


def _compare(received: torch.Tensor, ranks: Ranks, what: str) -> None:
    texts = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in received.view(ranks.size, -1).tolist()]
    for rank, text in enumerate(texts):
        if text.startswith(_ERROR):
            raise ValueError(f"{text.removeprefix(_ERROR)} (on rank {rank})")
    if len(set(texts)) > 1:
        by_rank = ", ".join(f"{text} on rank {rank}" for rank, text in enumerate(texts))
        raise ValueError(f"{what}: ranks differ: {by_rank}")


@lru_cache(1024)
def _record(text: str, device: torch.device) -> torch.Tensor:
    """Kept, since the host waits for the copy to a GPU."""
    return torch.tensor(list(text.encode()[:RECORD_BYTES].ljust(RECORD_BYTES, b"\0")), dtype=torch.uint8, device=device)
