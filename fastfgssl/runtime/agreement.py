"""What ranks agree on: values that must be the same, errors that end all of them, a flag that is asked in passing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import LostRank, RankError, UserError
from fastfgssl.runtime.memory import memory_errors

# what torch raises where NCCL or its store fails
_OF_TORCH = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
# gloo's errors are plain ones: they begin with a place in its source, or with its words, or with torch's wait for it
_OF_GLOO = re.compile(
    r"^\[\S*gloo/\S+:\d+\] .*(connection (was )?(closed|reset|refused)|broken pipe|timed out|timeout|reset by peer"
    r"|(read|write) error|socket closed|failed to (recv|send|connect))"
    r"|^(connection closed by peer|timed out waiting \d+ms for|application timeout caused|operation timed out!)",
    re.I | re.S,
)


def require_agreement(value: int, world: World, what: str) -> None:
    """Raises `UserError` on every rank unless all of them have the same `value` of `what`."""
    if world.control is None:
        return
    values: list[int] = [0] * world.size
    dist.all_gather_object(values, value, group=world.control)
    if len(set(values)) > 1:
        raise UserError(f"ranks differ in {what}: {values}; the folder must be one that all machines share")


@contextmanager
def shared_errors(world: World) -> Iterator[None]:
    """Raises a `UserError` that any rank meets in the body on all of them, so that they end together and say it once.

    Entered by every rank. The body must not call collectives that a rank would miss after its error.
    """
    met = None
    try:
        yield
    except UserError as error:
        met = (str(error), error.errno)
    of_ranks: list[tuple[str, int | None] | None] = [met] * world.size
    if world.control is not None:
        dist.all_gather_object(of_ranks, met, group=world.control)
    for rank, told in enumerate(of_ranks):
        if told is not None:
            text, number = told
            raise UserError(text if rank == 0 else f"{text} (on rank {rank})", errno=number)


class SharedFlag:
    """What all ranks agree on without waiting: asked at the start of a step, answered at its end.

    A number, such as that of a signal: the greatest of all ranks, 0 where the flag is raised on none.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._raised = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def ask(self, raised: int) -> None:
        """Begins to tell the other ranks what the flag is here, 0 for not raised."""
        self._raised.fill_(raised)
        if self._world.control is not None:
            self._pending = dist.all_reduce(
                self._raised, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True
            )

    def answer(self) -> int:
        """What it was raised to on any rank, else 0; the same on all of them."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        return int(self._raised.item())


@contextmanager
def lost_ranks(doing: str) -> Iterator[None]:
    """Turns what a collective of the body says of a rank that is gone into `LostRank`; doing: what was interrupted.

    The rank that ended first prints why; the launcher ends the others if they do not meet this themselves.
    """
    try:
        yield
    except RuntimeError as error:  # which those of torch are too
        if not dist.is_initialized() or not (isinstance(error, _OF_TORCH) or _OF_GLOO.search(str(error).strip())):
            raise
        reason = re.sub(r"^\[\S+:\d+\] ", "", str(error).strip()).splitlines()[0].partition(". ")[0]
        raise LostRank(f"another rank is gone or did not answer while {doing}: {reason}") from None


def mean_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    """The mean of all ranks' float64 values [N] on the host, the same on each."""
    if world.control is None:
        return values
    dist.all_reduce(values, group=world.control)
    return values / world.size


@contextmanager
def on_this_rank(doing: str) -> Iterator[None]:
    """For what each rank does for itself, and the others cannot tell of: a `UserError` of the body is a `RankError`."""
    try:
        with lost_ranks(doing), memory_errors(doing):
            yield
    except RankError:
        raise
    except UserError as error:
        raise RankError(str(error), errno=error.errno) from None
