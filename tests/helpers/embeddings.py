"""What the tests of the loss share: embeddings, and the loss with its gradients by each way."""

from __future__ import annotations

import torch

from fastfgssl.kernels.cross_correlation.algorithm import cross_correlation
from fastfgssl.kernels.cross_correlation.options import Options
from fastfgssl.loss import cross_correlation_loss

FORMS = ("barlow", "official")
ALGORITHMS = ("direct", "gram")


def embeddings(N, D, dtype=torch.float32, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views that agree in part, with columns of different size and offset."""
    generator = torch.Generator().manual_seed(seed)
    common, noise_1, noise_2 = (torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(3))
    scale = torch.logspace(-1, 1, D, dtype=torch.float64)
    return tuple(((common + 0.5 * noise) * scale + 3).to(dtype).requires_grad_() for noise in (noise_1, noise_2))


def loss_and_gradients(z1, z2, **arguments) -> list[torch.Tensor]:
    loss = cross_correlation_loss(z1, z2, **arguments)
    return [loss.detach(), *torch.autograd.grad(loss, (z1, z2))]


def compute(z1, z2, *, columns=None, **arguments) -> list[torch.Tensor]:
    """Loss and gradients from the algorithm, which takes the steps over columns to use."""
    options = Options(**{"precision": "float32"} | arguments)
    result = cross_correlation(z1.detach(), z2.detach(), options, with_gradients=True, columns=columns)
    return [result.loss, *result.gradients]
