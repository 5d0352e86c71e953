"""Where this process is in a group, as operators want to know it; and a collective that autograd sees through."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup


class Traffic(NamedTuple):
    """Bytes that each rank hands to collectives."""

    gathered: int = 0
    """That every other rank gets as they are."""
    summed: int = 0
    """That are added up over ranks."""

    def sent(self, num_ranks: int) -> float:
        """Bytes that each rank sends in a ring: W - 1 times what is gathered, 2 (W - 1) / W times what is summed."""
        return (num_ranks - 1) * (self.gathered + 2 / num_ranks * self.summed)


class Place(NamedTuple):
    """This process in a process group, which operators of torch.library know by its name."""

    name: str
    rank: int
    size: int


def place_in(group: ProcessGroup) -> Place:
    """Raises ValueError if this process is not one of the group's."""
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group: this process is not one of its ranks")
    return Place(group.group_name, rank, dist.get_world_size(group))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _SumOverRanks.apply(grad.contiguous(), ctx.group), None


def sum_over_ranks(values: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """The elementwise sum of all ranks' tensors; its gradient is the sum of all ranks' gradients."""
    return _SumOverRanks.apply(values, group)
