"""Collectives for operators of torch.library, which take the names of groups; and one that autograd sees through."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup


class Exchange(NamedTuple):
    """Bytes that each rank hands to collectives."""

    gathered: int = 0
    """That every other rank gets as they are."""
    summed: int = 0
    """That are added up over ranks."""

    def sent(self, num_ranks: int) -> float:
        """Bytes that each rank sends in a ring: W - 1 times what is gathered, 2 (W - 1) / W times what is summed."""
        return (num_ranks - 1) * (self.gathered + 2 / num_ranks * self.summed)


class GroupRanks:
    """The ranks of a process group as the loss sees them: whose rows are where, and how they are brought together."""

    def __init__(self, group: ProcessGroup) -> None:
        self.rank, self.size, self._group = dist.get_rank(group), dist.get_world_size(group), group
        if self.rank < 0:
            raise ValueError("group: this process is not one of its ranks")

    def gather(self, rows: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begins to gather all ranks' rows [n, ...]; the call that it returns waits for them: [size * n, ...].

        As many rows on each rank, in the order of ranks. Autograd does not see it.
        """
        gathered = rows.new_empty((self.size * len(rows), *rows.shape[1:]))
        # bytes, since not every backend knows every float
        sent, received = (tensor.view(torch.uint8) for tensor in (rows.detach().contiguous(), gathered))
        pending = dist.all_gather_into_tensor(received, sent, group=self._group, async_op=True)

        def wait() -> torch.Tensor:
            pending.wait()
            return gathered

        return wait

    def add_up(self, values: torch.Tensor) -> None:
        """Replaces `values` by their sum over ranks."""
        dist.all_reduce(values, group=self._group)

    def raise_together(self, error: ValueError | None, brings: tuple, what: str) -> None:
        """Raises ValueError on every rank if any has an `error`, or if what they bring differs; the host waits."""
        device = "cuda" if dist.get_backend(self._group) == "nccl" else "cpu"
        mine = torch.tensor([error is not None, zlib.crc32(repr(brings).encode())], device=device)
        all_ranks = self.gather(mine[None])().tolist()
        if not any(has_error for has_error, _ in all_ranks) and len({checksum for _, checksum in all_ranks}) == 1:
            return
        told: list[tuple[str | None, tuple]] = [(None, ())] * self.size
        dist.all_gather_object(told, (str(error) if error else None, brings), group=self._group)
        for rank, (text, _) in enumerate(told):
            if text is not None:
                raise ValueError(text if rank == self.rank else f"{text} (on rank {rank})")
        by_rank = ", ".join(f"{list(theirs)} on rank {rank}" for rank, (_, theirs) in enumerate(told))
        raise ValueError(f"{what}: ranks differ: {by_rank}")


def group_name(group: ProcessGroup | None) -> str:
    """The name by which `ranks_named` finds the group; empty for none."""
    return "" if group is None else group.group_name


def ranks_named(name: str) -> GroupRanks:
    """The ranks of a group of this process: operators of torch.library take names, not groups."""
    return GroupRanks(dist.distributed_c10d._resolve_process_group(name))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return _SumOverRanks.apply(grad.contiguous(), ctx.group), None


def sum_over_ranks(values: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """The elementwise sum of all ranks' tensors; its gradient is the sum of all ranks' gradients."""
    return _SumOverRanks.apply(values, group)
