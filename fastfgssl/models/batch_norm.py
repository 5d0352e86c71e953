"""Batch norm over all ranks: torch's own on GPUs, the same in plain collectives where torch has none (gloo on CPUs)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastfgssl.runtime.collectives import sum_over_ranks
from fastfgssl.runtime.distributed import World


def synchronise_batch_norm(model: nn.Module, world: World) -> nn.Module:
    """`model` with batch statistics of the global batch; parameters, buffers and their names stay as they are."""
    if world.group is None:
        return model
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, _synchronised(child, world))
    return model


def _synchronised(norm: nn.modules.batchnorm._BatchNorm, world: World) -> nn.Module:
    if world.device.type == "cuda":
        new = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # of all ranks; a group that it held could not be copied
    else:
        new = _HostSyncBatchNorm(norm, world)
    # timm's norms with an activation have it as a part, and run it themselves
    if parts := dict(norm.named_children()):
        for name, part in parts.items():
            new.add_module(name, part)
        new.register_forward_hook(_run_parts)
    return new


def _run_parts(norm: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    return norm.act(norm.drop(output))


class _HostSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Takes over the parameters and buffers of `source`; every rank must bring as many values of each channel."""

    def __init__(self, source: nn.modules.batchnorm._BatchNorm, world: World) -> None:
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self.load_state_dict(source.state_dict())
        self._world = world

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [N, C, ...], got {input.ndim} dimensions")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        others = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        group, size = self._world.group, self._world.size
        assert group is not None, "one rank keeps its own batch norm"
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = sum_over_ranks(values.mean(dim=others), group) / size
        centred = values - mean.view(shape)
        variance = sum_over_ranks(centred.square().mean(dim=others), group) / size
        if self.track_running_stats:
            self._track(mean, variance, input.numel() // input.shape[1] * size)
        normalised = centred * (variance.view(shape) + self.eps).rsqrt()
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Brings the running statistics nearer to those of a batch of `count` values of each channel."""
        tracked: Any = self
        tracked.num_batches_tracked += 1
        # without a momentum they are means over all batches so far
        share = 1 / int(tracked.num_batches_tracked) if self.momentum is None else self.momentum
        tracked.running_mean.lerp_(mean, share)
        tracked.running_var.lerp_(variance * (count / (count - 1)), share)
