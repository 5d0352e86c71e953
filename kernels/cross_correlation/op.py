"""The cross-correlation loss as an operator of torch, `fastfgssl::cross_correlation_loss`, and its derivatives.

Eager, under `torch.compile` without a graph break, inside autocast, where it computes in float32 what needs it; in
reverse and in forward mode, under `torch.func` too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastfgssl.kernels.cross_correlation.algorithm import cross_correlation
from fastfgssl.kernels.cross_correlation.options import Options
from fastfgssl.kernels.cross_correlation.ranks import ALONE, Ranks, require_same
from fastfgssl.kernels.derivatives import is_transformed


def cross_correlation_loss(
    z1: Tensor, z2: Tensor, options: Options, *, ranks: Ranks = ALONE, check_ranks: bool = True
) -> tuple[Tensor, Tensor]:
    """The loss and the terms [3] of `CrossCorrelation`; only the loss has derivatives, the first and no further.

    z1, z2: [n, D], this rank's rows. check_ranks: see `require_same`. Takes its arguments on trust (`check_arguments`).
    """
    needs_derivatives = [is_transformed() or (torch.is_grad_enabled() and z.requires_grad) for z in (z1, z2)]
    options = _resolved(options, z1, z2)
    loss, terms, *gradients = _loss_and_gradients(
        z1.detach(),
        z2.detach(),
        lambd=options.lambd,  # one by one: torch 2.11 compiles no vars()
        form=options.form,
        algorithm=options.algorithm,
        precision=options.precision,
        with_gradients=any(needs_derivatives),
        group=ranks.group,
        rank=ranks.rank,
        size=ranks.size,
        check_ranks=check_ranks,
    )
    function = _WithDerivatives if is_transformed() else _WithGradient
    for z, gradient, is_needed in zip((z1, z2), gradients, needs_derivatives, strict=True):
        if is_needed:
            # a node for each view: backward then frees the gradient of one before it makes that of the other
            loss = function.apply(loss, gradient, z, z[:0].clone())
    return loss, terms


def _resolved(options: Options, z1: Tensor, z2: Tensor) -> Options:
    """As the operator takes them: of Python's own types, with a precision that is not auto."""
    precision = options.precision
    if precision == "auto":
        device = z1.device.type
        halves = {z1.dtype, z2.dtype} <= {torch.float16, torch.bfloat16} or torch.is_autocast_enabled(device)
        precision = "bfloat16" if device == "cuda" and halves else "float32"
    return replace(options, lambd=float(options.lambd), precision=precision)


@torch.library.custom_op("fastfgssl::cross_correlation_loss", mutates_args=())
def _loss_and_gradients(
    z1: Tensor,
    z2: Tensor,
    *,
    lambd: float,
    form: str,
    algorithm: str,
    precision: str,
    with_gradients: bool,
    group: str,
    rank: int,
    size: int,
    check_ranks: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, its terms [3], and its gradients, empty if not asked for."""
    ranks, options = Ranks(group, rank, size), Options(lambd=lambd, form=form, algorithm=algorithm, precision=precision)
    if check_ranks:
        brings = [*z1.shape, str(z1.dtype), str(z2.dtype), with_gradients, *vars(options).values()]
        what = "N, D, dtypes, whether gradients are asked for, lambd, form, algorithm, precision"
        require_same(ranks, str(brings), what, z1.device)
    result = cross_correlation(z1, z2, options, with_gradients=with_gradients, ranks=ranks)
    gradients = result.gradients or (result.loss.new_empty(0), result.loss.new_empty(0))
    return result.loss, result.terms, *gradients


@_loss_and_gradients.register_fake
def _fake(z1: Tensor, z2: Tensor, *, with_gradients: bool, **_: Any) -> tuple[Tensor, ...]:
    dtype = torch.float64 if torch.float64 in (z1.dtype, z2.dtype) else torch.float32
    shape = z1.shape if with_gradients else (0,)
    return tuple(z1.new_empty(size, dtype=dtype) for size in ((), (3,), shape, shape))


class _WithGradient(torch.autograd.Function):
    """The loss as it is, whose gradient by the embeddings z is known; `edge` is an empty tensor made of z."""

    generate_vmap_rule = True

    @staticmethod
    def forward(loss: Tensor, gradient: Tensor, z: Tensor, edge: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, gradient, z, edge = inputs
        ctx.save_for_backward(gradient, edge)
        ctx.save_for_forward(gradient, edge)
        ctx.dtype = z.dtype

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        gradient, edge = ctx.saved_tensors
        return upstream, None, _Scaled.apply(upstream, gradient, edge).to(ctx.dtype), None


class _WithDerivatives(_WithGradient):
    """The same with forward mode, which Dynamo would not trace."""

    @staticmethod
    def jvp(ctx: Any, loss: Tensor, gradient: Tensor, z: Tensor, edge: Tensor) -> Tensor:
        own_gradient, own_edge = ctx.saved_tensors
        return loss + _Scaled.apply(z, own_gradient, own_edge).sum()


class _Scaled(torch.autograd.Function):
    """factor * gradient, which refuses to be differentiated by the embeddings, along `edge`: nothing else shows them.

    `once_differentiable` does not do. It refuses only where the factor needs a gradient, but the factor is mostly the 1
    that `backward()` begins with: a gradient penalty would get zeros in silence. Forward mode it does not see at all.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(factor: Tensor, gradient: Tensor, edge: Tensor) -> Tensor:
        return factor * gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> None:
        raise NotImplementedError(_ONCE)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> None:
        raise NotImplementedError(_ONCE)


_ONCE = (
    "the cross-correlation loss is differentiable once, in reverse or in forward mode: no derivative of a derivative"
)
