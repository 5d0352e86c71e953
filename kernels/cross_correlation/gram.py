"""The cross-correlation loss from two N x N Gram matrices: exact, and no D x D matrix is ever formed.

With K1 = Z1 Z1' and K2 = Z2 Z2', ||C||_F^2 = <K1, K2> / N^2, and the diagonal of C costs O(N D). Both forms of the loss
are a ||C||_F^2 + sum_i f(C_ii), so with d_i = C_ii
    dL/dZ1 = (2 a / N^2) K2 Z1 + (1 / N) Z2 diag(f'(d)),
and the other side by symmetry. Cheaper than the direct form for N < 0.75 D (README.md).
"""

from __future__ import annotations

import torch


class GramLoss(torch.autograd.Function):
    """Loss of standardised embeddings z1, z2 [N, D], float32 or float64; `form` as in reference.py."""

    @staticmethod
    def forward(ctx, z1_ND: torch.Tensor, z2_ND: torch.Tensor, lambd: float, form: str) -> torch.Tensor:
        N, D = z1_ND.shape
        k1_NN, k2_NN = z1_ND @ z1_ND.T, z2_ND @ z2_ND.T
        diagonal_D = torch.linalg.vecdot(z1_ND, z2_ND, dim=0) / N
        ctx.save_for_backward(z1_ND, z2_ND, k1_NN, k2_NN, diagonal_D)
        ctx.lambd, ctx.form = lambd, form
        squared_norm = torch.vdot(k1_NN.flatten(), k2_NN.flatten()) / N**2
        if form == "official":
            return lambd**2 * (squared_norm - 2 * diagonal_D.sum() + D)
        return (1 - diagonal_D).square().sum() + lambd * (squared_norm - diagonal_D.square().sum())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: torch.Tensor):
        z1_ND, z2_ND, k1_NN, k2_NN, diagonal_D = ctx.saved_tensors
        N, lambd = len(z1_ND), ctx.lambd
        if ctx.form == "official":
            norm_weight, diagonal_slope_D = lambd**2, torch.full_like(diagonal_D, -2 * lambd**2)
        else:
            norm_weight, diagonal_slope_D = lambd, 2 * ((1 - lambd) * diagonal_D - 1)
        a, slope_D = upstream * (2 * norm_weight / N**2), upstream * diagonal_slope_D / N
        grad_1 = a * (k2_NN @ z1_ND) + z2_ND * slope_D if ctx.needs_input_grad[0] else None
        grad_2 = a * (k1_NN @ z2_ND) + z1_ND * slope_D if ctx.needs_input_grad[1] else None
        return grad_1, grad_2, None, None
