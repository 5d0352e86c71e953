"""The rows of all ranks, as autograd sees them: what a loss needs that looks at more than one image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from fastfgssl.kernels.cross_correlation import ALONE, Ranks
from fastfgssl.runtime.collectives import Traffic, place_in


def whole_batch(z1: Tensor, z2: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """The rows [N, D] of two views on all ranks, in the order of ranks; float32 (float64 for float64 embeddings).

    z1, z2: [n, D], this rank's rows, any float dtype, as many on every rank of `group`; None for a process on its own.
    What is made of the result has to be the same on every rank. Then each rank knows the whole gradient, of which it
    takes its rows, times world size: the mean over ranks that DistributedDataParallel takes is the true gradient, and
    backward sends nothing. Raises ValueError unless both views are [n, D] and there are two rows in all.
    """
    ranks = ALONE if group is None else Ranks(*place_in(group))
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"z1, z2: must both be [N, D], got {list(z1.shape)} and {list(z2.shape)}")
    if len(z1) * ranks.size < 2:
        raise ValueError("z1, z2: must have two rows or more, over all ranks")
    if ranks.size > 1:
        # both in one collective
        z1, z2 = _Gather.apply(torch.stack((z1, z2), dim=1), ranks).unbind(dim=1)
    wide = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    return z1.to(wide), z2.to(wide)


def gather_traffic(num_rows: int, dim: int, element_size: int) -> Traffic:
    """What a rank hands to collectives in `whole_batch`; element_size: bytes of an embedding's number."""
    return Traffic(gathered=2 * num_rows * dim * element_size)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.start = ranks, ranks.rank * len(rows)
        return ranks.begin_gather(rows)()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        own = gradient.narrow(0, ctx.start, len(gradient) // ctx.ranks.size)
        return ctx.ranks.size * own, None
