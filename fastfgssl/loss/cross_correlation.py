"""The training loss: the cross-correlation loss of a batch that may be spread over ranks.

The well-known implementations add up the cross-correlation matrix with a collective that autograd does not see, and
train with 1 / world size of the true gradient. Here every rank gathers the embeddings, and its gradient is exactly its
rows' part of the gradient of one process on the whole batch.

Registered with `torch.library` as `fastfgssl::cross_correlation_loss`: eager, under `torch.compile` without a graph
break, inside autocast, where it computes in float32 what needs it.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch.distributed import ProcessGroup

from fastfgssl.kernels import cross_correlation as kernels
from fastfgssl.kernels.cross_correlation.op import ALONE
from fastfgssl.kernels.cross_correlation.reference import standardise
from fastfgssl.runtime.collectives import Exchange, GroupRanks, group_name, ranks_named


class LossTerms(NamedTuple):
    """The loss of the whole batch and what it consists of; scalars on the embeddings' device, alike on every rank."""

    loss: torch.Tensor
    """float32 (float64 for float64 embeddings); the only one with a gradient."""
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
    over the batch in float32. form: "barlow" is sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2 (Barlow Twins, arXiv
    2103.03230, equation 1), "official" is lambd^2 ||C - I||_F^2 (the published FG-SSL code). algorithm: "direct"
    forms the D x D matrix in slabs, "gram" two N x N ones with the same result, "auto" takes the cheaper. precision:
    what matrix products round their operands to, "float32" or "bfloat16"; "auto" is bfloat16 on a GPU for embeddings of
    16 bits or inside autocast. Sums are float32; with float64 embeddings everything is float64, whatever the precision.

    group: with a process group, z1 and z2 are this rank's rows, as many on every rank. The value is that of the whole
    batch on every rank; the gradient is world size times the part of this rank's rows, so that the mean over ranks
    which DistributedDataParallel takes is the true gradient. check_ranks: ranks tell each other first what they bring,
    so that what does not fit is an error on all of them; the host waits for that. Turn it off where it cannot differ.

    Returns a float32 scalar (float64 for float64 embeddings), differentiable once, in reverse mode. Raises ValueError
    naming the argument that does not fit; FASTFGSSL_DEBUG=1 makes NaN and infinity such an error too.
    """
    return cross_correlation_terms(
        z1,
        z2,
        lambd=lambd,
        form=form,
        algorithm=algorithm,
        precision=precision,
        group=group,
        check_ranks=check_ranks,
    ).loss


def cross_correlation_terms(
    z1: torch.Tensor,
    z2: torch.Tensor,
    *,
    lambd: float = 0.0051,
    form: str = "barlow",
    algorithm: str = "auto",
    precision: str = "auto",
    group: ProcessGroup | None = None,
    check_ranks: bool = True,
) -> LossTerms:
    """`cross_correlation_loss` with the terms it consists of, for logging; they cost no further matrix product."""
    with_gradients = torch.is_grad_enabled() and any(isinstance(z, torch.Tensor) and z.requires_grad for z in (z1, z2))
    asked = {"lambd": lambd, "form": form, "algorithm": algorithm, "precision": precision}
    _check(z1, z2, group, asked, with_gradients, check_ranks)
    on_gpu = z1.device.type == "cuda"
    if precision == "auto":
        halves = {z1.dtype, z2.dtype} <= {torch.float16, torch.bfloat16} or torch.is_autocast_enabled(z1.device.type)
        precision = "bfloat16" if on_gpu and halves else "float32"
    # a check that would break the graph is left to the operator
    check_inside = check_ranks and torch.compiler.is_compiling()
    loss, terms, *gradients = _loss_op(
        z1.detach(), z2.detach(), lambd, form, algorithm, precision, with_gradients, group_name(group), check_inside
    )
    for z, gradient in zip((z1, z2), gradients, strict=True):
        if with_gradients and z.requires_grad:
            # a node for each view: backward then frees the gradient of one before it makes that of the other
            loss = _WithGradient.apply(loss, gradient, z, z[:0].clone())
    return LossTerms(loss, *terms.unbind())


@torch.no_grad()
def effective_rank(z: torch.Tensor, group: ProcessGroup | None = None, *, most_rows: int = 1024) -> torch.Tensor:
    """How many directions the embeddings fill: exp(entropy of the singular values' shares), 1 if they have collapsed.

    z: [N, D], this rank's rows; columns are standardised first. Taken from the Gram matrix, or Z'Z where that is the
    smaller, of at most `most_rows` rows, the first of each rank, in float64: roots of small eigenvalues show their
    rounding. It costs an eigenvalue decomposition of that size. Returns a float32 scalar, at most min(rows - 1, D); 0
    if all rows are the same, NaN if one is not finite. Source: RankMe, arXiv 2210.02885, equation 1.
    """
    if z.ndim != 2:
        raise ValueError(f"z: must be [N, D], got {list(z.shape)}")
    with torch.autocast(z.device.type, enabled=False):
        if group is not None:
            ranks = GroupRanks(group)
            z = ranks.gather(z[: max(1, most_rows // ranks.size)])()
        z = standardise(z[:most_rows].double())
        gram = z @ z.T if len(z) <= z.shape[1] else z.T @ z
        is_finite = gram.isfinite().all()
        gram = torch.where(is_finite, gram, 0)  # the decomposition would raise an error, and say no more than NaN does
        singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
        total = singular.sum()
        rank = torch.special.entr(singular / total).sum().exp()
        rank = torch.where(total > 0, rank, 0)
        return torch.where(is_finite, rank, torch.nan).float()


def bytes_to_exchange(num_rows: int, dim: int, element_size: int = 4, with_gradients: bool = True) -> Exchange:
    """What a rank hands to collectives for one loss: its rows [num_rows, dim] of both views, and four sums a column.

    element_size: bytes of an embedding's number. Sums are float32 or wider.
    """
    sums = 1 + (4 * dim if with_gradients else 0)
    return Exchange(gathered=2 * num_rows * dim * element_size, summed=max(4, element_size) * sums)


_BROUGHT = "N, D, dtypes, whether gradients are asked for, lambd, form, algorithm, precision"


def _check(z1, z2, group, asked: dict, with_gradients: bool, check_ranks: bool) -> None:
    """Raises ValueError for arguments that do not fit, on every rank alike if ranks exchange what they bring."""
    if torch.compiler.is_compiling():
        kernels.check_arguments(z1, z2, **asked)
        return
    error, brings = None, ()
    ranks = None if group is None else GroupRanks(group)
    debug = os.environ.get("FASTFGSSL_DEBUG") == "1"
    try:
        kernels.check_arguments(z1, z2, **asked)
        kernels.require_rows(len(z1) * (ranks.size if ranks else 1))
        if debug:
            kernels.require_finite(z1, z2)
        brings = _brings(z1, z2, with_gradients, *asked.values())
    except ValueError as wrong:
        error = wrong
    if ranks is not None and (check_ranks or debug):
        ranks.raise_together(error, brings, _BROUGHT)
    elif error is not None:
        raise error


def _brings(z1: torch.Tensor, z2: torch.Tensor, with_gradients: bool, *asked) -> tuple:
    """What has to be the same on every rank."""
    return (*z1.shape, str(z1.dtype), str(z2.dtype), with_gradients, *asked)


@torch.library.custom_op("fastfgssl::cross_correlation_loss", mutates_args=())
def _loss_op(
    z1: torch.Tensor,
    z2: torch.Tensor,
    lambd: float,
    form: str,
    algorithm: str,
    precision: str,
    with_gradients: bool,
    group_name: str,
    check_ranks: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, the other terms of `LossTerms` [3], and the gradients of the loss, empty if not asked for."""
    ranks = ranks_named(group_name) if group_name else ALONE
    kernels.require_rows(len(z1) * ranks.size)
    if check_ranks and group_name:
        ranks.raise_together(None, _brings(z1, z2, with_gradients, lambd, form, algorithm, precision), _BROUGHT)
    result = kernels.cross_correlation(
        z1,
        z2,
        lambd=lambd,
        form=form,
        algorithm=algorithm,
        precision=getattr(torch, precision),
        with_gradients=with_gradients,
        ranks=ranks,
    )
    gradients = result.gradients or (result.loss.new_empty(0), result.loss.new_empty(0))
    return result.loss, result.terms, *gradients


@_loss_op.register_fake
def _loss_fake(z1, z2, lambd, form, algorithm, precision, with_gradients, group_name, check_ranks):
    dtype = torch.float64 if torch.float64 in (z1.dtype, z2.dtype) else torch.float32
    shape = z1.shape if with_gradients else (0,)
    return tuple(z1.new_empty(size, dtype=dtype) for size in ((), (3,), shape, shape))


class _WithGradient(torch.autograd.Function):
    """The loss as it is, whose gradient by the embeddings z is known; `edge` is an empty tensor made of z."""

    @staticmethod
    def forward(ctx, loss: torch.Tensor, gradient: torch.Tensor, z: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient, edge)
        ctx.dtype = z.dtype
        return loss.clone()

    @staticmethod
    def backward(ctx, upstream: torch.Tensor) -> tuple:
        gradient, edge = ctx.saved_tensors
        return upstream, None, _Scaled.apply(upstream, gradient, edge).to(ctx.dtype), None


class _Scaled(torch.autograd.Function):
    """upstream * gradient, whose own derivative by the embeddings is not known: backward along `edge` says so."""

    @staticmethod
    def forward(ctx, upstream: torch.Tensor, gradient: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
        return upstream * gradient

    @staticmethod
    def backward(ctx, *upstream) -> None:
        raise NotImplementedError("the cross-correlation loss is differentiable once")
