"""Batch statistics computed anew: what each batch norm of a network sees over a set of images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fastfgssl.models import Network


class PooledMoments:
    """Mean and variance of each channel over all inputs of a batch norm: a forward pre-hook that pools its batches.

    Source: T. F. Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self) -> None:
        self.count = 0  # values of a channel
        self.mean = self.squares = torch.zeros(())  # float64 [C]; squares: summed squared distances from the mean

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(values.float(), dim=1, unbiased=False)
        added, total = values.shape[1], self.count + values.shape[1]
        distance = mean.double() - self.mean.to(mean.device)
        self.mean = self.mean.to(mean.device) + distance * (added / total)
        between = distance.square() * (self.count * added / total)
        self.squares = self.squares.to(mean.device) + variance.double() * added + between
        self.count = total


@torch.no_grad()
def recompute_batch_statistics(model: Network, batches: Iterable[torch.Tensor]) -> None:
    """Replaces the running statistics of the batch norms that features pass by those over `batches` [B, C, S, S].

    The statistics of a norm are the mean and the unbiased variance of its inputs over all images together, weighted by
    their number, the variance between batches included. What is fed to the first norm does not depend on the batches;
    what is fed to a deeper one has been normalised by the statistics of its batch, as in training, so that batches
    ought to be of mixed classes and not small. B must be 2 or more in each. Leaves the model in evaluation mode.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    pools = [PooledMoments() for _ in norms]
    handles = [norm.register_forward_pre_hook(pool) for norm, pool in zip(norms, pools, strict=True)]
    model.train()
    for images in batches:
        model.features(images)
    model.eval()
    for norm, pool, handle in zip(norms, pools, handles, strict=True):
        handle.remove()
        if not pool.count:  # of a head, which no feature comes from
            continue
        statistics: Any = norm
        statistics.running_mean.copy_(pool.mean)
        statistics.running_var.copy_(pool.squares / (pool.count - 1))
