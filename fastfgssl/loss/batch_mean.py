"""The mean of a loss over the images of a whole batch, which may be spread over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastfgssl.runtime.collectives import place_in, sum_over_ranks


def batch_mean(losses: Tensor, weights: Tensor, *, group: ProcessGroup | None = None) -> Tensor:
    """The sum of `losses` over the sum of `weights`: of all rows of all ranks, and the same on every rank.

    losses: [b], this rank's rows, each times its weight already; weights: [b], of the same dtype, 0 for a row that does
    not count, without derivatives. b may differ between ranks, and be 0.

    A rank's own mean, averaged over ranks as DistributedDataParallel does with gradients, would be another loss
    wherever ranks differ in weight: a rank with two labelled images would count them as much as one with twenty. With a
    group the denominator is that of all ranks, and the gradient is world size times the part of this rank's rows, so
    that the mean over ranks is that of one process on all rows. One sum of two numbers over ranks; none in backward.

    Returns [], 0 with gradients of 0 if no row counts.
    """
    own = torch.stack((losses.sum(), weights.detach().sum()))
    if group is None:
        return own[0] / torch.where(own[1] > 0, own[1], 1)
    with torch.no_grad():  # which forward mode passes over: there the sum over ranks refuses
        total, weight = sum_over_ranks(own, group).unbind()
        weight = torch.where(weight > 0, weight, 1)
    share = own[0] * (place_in(group).size / weight)
    return total / weight + (share - share.detach())  # the value of all rows, the gradient of this rank's
