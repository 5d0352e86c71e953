"""Suite `loss`: forward and backward of the cross-correlation loss, against its plain direct form under autograd."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastfgssl.benchmarks.measure import Record, compare, require_close
from fastfgssl.kernels.cross_correlation.reference import cross_correlation_loss_reference, standardise
from fastfgssl.loss import cross_correlation_loss

SHAPES = {"cpu": ((200, 512), (256, 2048), (256, 8192)), "cuda": ((200, 512), (256, 8192), (2048, 8192), (4096, 2048))}


def run(device: torch.device) -> Iterator[Record]:
    """A record for each shape; the limit is the time of the cheaper form's matrix products alone."""
    for N, D in SHAPES[device.type]:
        yield _measure(N, D, device)


def _measure(N: int, D: int, device: torch.device) -> Record:
    generator = torch.Generator(device).manual_seed(0)
    z1, z2 = (torch.randn(N, D, device=device, generator=generator, requires_grad=True) for _ in range(2))

    def ours() -> list[torch.Tensor]:
        loss = cross_correlation_loss(z1, z2)
        return [loss, *torch.autograd.grad(loss, (z1, z2))]

    def plain() -> list[torch.Tensor]:
        loss = cross_correlation_loss_reference(standardise(z1), standardise(z2), lambd=0.0051, form="barlow")
        return [loss, *torch.autograd.grad(loss, (z1, z2))]

    @torch.no_grad()
    def products() -> None:
        """Four products of 2 N^2 D operations (gram) or three of 2 N D^2 (direct), whichever are fewer."""
        if 4 * N < 3 * D:
            _ = (z1 @ z1.T) @ z2, (z2 @ z2.T) @ z1
        else:
            corr = z1.T @ z2
            _ = z2 @ corr.T, z1 @ corr

    for name, got, want in zip(("loss", "gradient 1", "gradient 2"), ours(), plain(), strict=True):
        require_close(f"loss {N} x {D}, {name}", got, want, tolerance=1e-3)
    return compare(
        "loss",
        f"forward + backward, N {N}, D {D}",
        ours=ours,
        baseline=("plain PyTorch, direct form", plain),
        limit=("matrix products alone", products),
        items=1,
        unit="calls/s",
        runs=20 if device.type == "cuda" or N * D < 10**6 else 5,
        device=device,
    )
