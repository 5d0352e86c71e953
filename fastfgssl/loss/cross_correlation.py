"""The training loss: the cross-correlation loss of a batch that may be spread over ranks.

The code of Barlow Twins (facebookresearch/barlowtwins, main.py) and of solo-learn (solo/losses/barlow.py:51-54) adds up
the cross-correlation matrix with an `all_reduce` that autograd does not see, and under DistributedDataParallel trains
with 1 / world size of the true gradient. Here every rank gathers the embeddings, and its gradient is exactly its rows'
part of the gradient of one process on the whole batch.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed import ProcessGroup

from fastfgssl.kernels import cross_correlation as kernels
from fastfgssl.kernels.cross_correlation import ALONE, Options, Ranks
from fastfgssl.runtime.collectives import Traffic, place_in


class LossTerms(NamedTuple):
    """The loss of the whole batch and what it consists of; scalars on the embeddings' device, alike on every rank."""

    loss: torch.Tensor
    """float32 (float64 for float64 embeddings); the only one with derivatives."""
    on_diagonal: torch.Tensor
    """sum_i (1 - C_ii)^2: how far the two views' features are from equal."""
    off_diagonal: torch.Tensor
    """sum_(i != j) C_ij^2: how far features are from uncorrelated."""
    dead_dimensions: torch.Tensor
    """Features whose variance over the batch is below 1e-5 in either view."""

    @property
    def is_finite(self) -> torch.Tensor:
        """False if any embedding is NaN or infinite: a bool on the device, which nothing has waited for."""
        return self.loss.isfinite()


def cross_correlation_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    *,
    lambd: float = 0.0051,
    form: str = "barlow",
    algorithm: str = "auto",
    precision: str = "auto",
    group: ProcessGroup | None = None,
    check_ranks: bool = True,
) -> torch.Tensor:
    """How far the cross-correlation matrix of two views' embeddings is from the identity.

    z1, z2: embeddings [N, D] of two views, any float dtype, row i of both of the same image; columns are standardised
    over the batch in float32. lambd, form, algorithm, precision: see `Options`. Sums are float32; with float64
    embeddings everything is float64, whatever the precision.

    group: with a process group, z1 and z2 are this rank's rows, as many on every rank. The value is that of the whole
    batch on every rank; the gradient is world size times the part of this rank's rows, so that the mean over ranks
    which DistributedDataParallel takes is the true gradient; so is the mean of forward mode's tangents. check_ranks,
    the same on every rank: ranks tell each other first what they bring, in 256 bytes, so that what does not fit is an
    error, not a hang: on all of them on a CPU; on a GPU the host waits for it only the first time that something is
    brought, or for FASTFGSSL_DEBUG=1, and those ranks raise that brought something new.

    Returns a float32 scalar (float64 for float64 embeddings), differentiable once, in reverse or in forward mode, also
    by `torch.func`: a derivative of a derivative is a NotImplementedError. Raises ValueError naming the argument that
    does not fit; FASTFGSSL_DEBUG=1 makes NaN and infinity such an error too.
    """
    options = Options(lambd=lambd, form=form, algorithm=algorithm, precision=precision)
    return cross_correlation_terms(z1, z2, options, group=group, check_ranks=check_ranks).loss


def cross_correlation_terms(
    z1: torch.Tensor,
    z2: torch.Tensor,
    options: Options = Options(),  # noqa: B008 - it is frozen
    *,
    group: ProcessGroup | None = None,
    check_ranks: bool = True,
) -> LossTerms:
    """`cross_correlation_loss` with the terms it consists of, for logging; they cost no further matrix product.

    Raises TypeError for `options` of another type, such as a number.
    """
    ranks = ALONE if group is None else Ranks(*place_in(group))
    debug = os.environ.get("FASTFGSSL_DEBUG") == "1" and not torch.compiler.is_compiling()
    check_ranks = check_ranks or debug
    try:
        kernels.check_arguments(z1, z2, options, ranks.size)
        if debug:
            kernels.require_finite(z1, z2)
    except (ValueError, TypeError) as error:
        if check_ranks and not torch.compiler.is_compiling():
            kernels.send_error(ranks, error, _device_of(z1, z2))
        raise
    loss, terms = kernels.cross_correlation_loss(z1, z2, options, ranks=ranks, check_ranks=check_ranks)
    return LossTerms(loss, *terms.unbind())


def _device_of(*values: object) -> torch.device:
    """Where the embeddings would be."""
    devices = (value.device for value in values if isinstance(value, torch.Tensor) and not value.is_meta)
    return next(devices, torch.device("cpu"))


class CrossCorrelationLoss(nn.Module):
    """`cross_correlation_loss` as a module, which has no parameters.

    >>> import torch
    >>> from fastfgssl.loss import CrossCorrelationLoss
    >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 64))
    >>> criterion = CrossCorrelationLoss(lambd=0.0051)
    >>> view_1, view_2 = torch.rand(16, 3, 32, 32), torch.rand(16, 3, 32, 32)  # of the same 16 images
    >>> loss = criterion(backbone(view_1), backbone(view_2))
    >>> loss.backward()
    >>> loss.shape
    torch.Size([])

    Under DistributedDataParallel give it `group=torch.distributed.group.WORLD`. Raises ValueError for an option that is
    not known, or a `lambd` that is no number greater than 0.
    """

    def __init__(
        self,
        *,
        lambd: float = 0.0051,
        form: str = "barlow",
        algorithm: str = "auto",
        precision: str = "auto",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.options = Options(lambd=lambd, form=form, algorithm=algorithm, precision=precision)
        self.options.check()
        self.group = group

    def forward(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        """z1, z2: embeddings [N, D] of two views of N images; returns the loss, a scalar."""
        return cross_correlation_terms(z1, z2, self.options, group=self.group).loss

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in vars(self.options).items())


def loss_traffic(num_rows: int, dim: int, element_size: int = 4, with_gradients: bool = True) -> Traffic:
    """What a rank hands to collectives for one loss: its rows [num_rows, dim] of both views, and four sums a column.

    element_size: bytes of an embedding's number. Sums are float32 or wider. Without what `check_ranks` adds.
    """
    sums = 1 + (4 * dim if with_gradients else 0)
    return Traffic(gathered=2 * num_rows * dim * element_size, summed=max(4, element_size) * sums)
