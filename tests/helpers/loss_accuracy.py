"""How far a cross-correlation loss may be from float64, and embeddings that are hard for it."""

from __future__ import annotations

import torch

from fastfgssl.kernels.cross_correlation.reference import cross_correlation_loss_reference, standardise
from helpers.embeddings import embeddings, loss_and_gradients

NAMES = ("loss", "gradient 1", "gradient 2")


def in_float64(z1, z2, form) -> list[torch.Tensor]:
    """The truth: N x N or D x D, whichever is fewer operations; `test_the_value_is_that_of_the_definition` has both."""
    return loss_and_gradients(*(z.detach().double().requires_grad_() for z in (z1, z2)), form=form)


class RoundedProduct(torch.autograd.Function):
    """a @ b of bfloat16 numbers added up in float32, forward and backward, as tensor cores do it under autocast."""

    @staticmethod
    def forward(ctx, a, b):
        a, b = a.bfloat16().float(), b.bfloat16().float()
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx, upstream):
        a, b = ctx.saved_tensors
        upstream = upstream.bfloat16().float()
        return upstream @ b.T, a.T @ upstream


def plain_direct(z1, z2, form, rounded=False) -> list[torch.Tensor]:
    """Plain PyTorch: C, its squares and autograd."""
    s1, s2 = (standardise(z.to(torch.promote_types(z.dtype, torch.float32))) for z in (z1, z2))
    if not rounded:
        loss = cross_correlation_loss_reference(s1, s2, lambd=0.0051, form=form)
    else:
        corr = RoundedProduct.apply(s1.T, s2) / len(s1)
        on, off = (1 - corr.diagonal()).square().sum(), (corr - corr.diagonal().diag()).square().sum()
        loss = on + 0.0051 * off if form == "barlow" else 0.0051**2 * (on + off)
    return [loss.detach(), *torch.autograd.grad(loss, (z1, z2))]


def before_the_standardisation(z1, z2, form) -> list[torch.Tensor]:
    """The gradients by themselves, before the standardisation's backward takes parts of them away, in float64."""
    views = [z.detach().double() for z in (z1, z2)]
    leaves = [standardise(z).requires_grad_() for z in views]
    gradients = torch.autograd.grad(cross_correlation_loss_reference(*leaves, lambd=0.0051, form=form), leaves)
    return [g * (z.var(dim=0, correction=0) + 1e-5).rsqrt() for g, z in zip(gradients, views, strict=True)]


def require_as_exact_as_plain(got, plain, truth, before=None, *, times=2, units=4e-7) -> None:
    """The checker: loss and both gradients at most twice as far from float64 as plain PyTorch in the same precision.

    But for a few units in float32's last place: of the value, of the gradients `before` parts of them cancel, and of
    the diagonal of C, from which a small 1 - C_ii is taken.
    """
    D = truth[1].shape[1]
    sizes = [truth[0] + 2 * (D * truth[0]).sqrt(), *(before or truth[1:])]
    for name, value, reference, true, size in zip(NAMES, got, plain, truth, sizes, strict=True):
        error, allowed = (
            (value.double() - true).norm(),
            times * (reference.double() - true).norm() + units * size.norm(),
        )
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


def hard_embeddings(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    z1, z2 = (z.detach() for z in embeddings(100, 150))
    if case == "dead features":
        z1[:, 2], z2[:, 3], z1[:, 7], z2[:, 7] = 0, -5, 1000, 1000
    elif case == "nearly collinear":
        z1[:, 1::2] = z1[:, ::2] * (1 + 1e-6) + 1e-5 * torch.randn(100, 75)
    else:
        z1, z2 = z1 * float(case), z2 * float(case)
    return z1.requires_grad_(), z2.requires_grad_()
