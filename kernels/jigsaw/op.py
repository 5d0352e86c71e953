"""The public jigsaw: shuffles the tiles of images that are tensors already, on any device, with gradients.

Registered with `torch.library` as `fastfgssl::jigsaw`: eager, under `torch.compile` without a graph break, under
autograd in reverse and in forward mode, and under `torch.func`. The gradient is the jigsaw of the inverse permutation.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from fastfgssl.kernels.derivatives import is_transformed
from fastfgssl.kernels.jigsaw.reference import require_jigsaw_arguments


def jigsaw(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> torch.Tensor:
    """Cuts images into grid x grid tiles and shuffles them; differentiable in `images`.

    images: [B, C, H, W], any dtype and memory format; permutation: int64 [B, grid * grid] on the same device, each row
    a permutation: output tile t is input tile permutation[b, t], row-major. Rows that are no permutations are found
    when FASTFGSSL_DEBUG=1, but under compilation; that waits for the GPU. Otherwise what they give is undefined.
    Returns a tensor like `images`, in its memory format. Raises ValueError naming the argument that does not fit.
    """
    require_jigsaw_arguments(images, permutation, grid)
    if os.environ.get("FASTFGSSL_DEBUG") == "1" and not images.is_meta and not torch.compiler.is_compiling():
        require_permutations(permutation, grid)
    operator = _Jigsaw.apply if is_transformed() else _jigsaw
    return operator(images, permutation, grid)


def require_permutations(permutation: torch.Tensor, grid: int) -> None:
    """Raises ValueError naming the first row of `permutation` that is none of 0..grid * grid - 1."""
    expected = torch.arange(grid * grid, device=permutation.device)
    wrong = (permutation.sort(dim=1).values != expected).any(dim=1)
    if wrong.any():
        raise ValueError(f"permutation: row {int(wrong.nonzero()[0])} is not a permutation of 0..{grid * grid - 1}")


def _memory_format(images: torch.Tensor) -> torch.memory_format:
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


@torch.library.custom_op("fastfgssl::jigsaw", mutates_args=(), device_types="cpu")
def _jigsaw(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> torch.Tensor:
    """On the CPU: rows of tiles are gathered by one `index_select`, which copies them whole."""
    B, C, H, W = images.shape
    format = _memory_format(images)
    images = images.contiguous(memory_format=format)
    interleaved = format == torch.channels_last
    planes, row = (B, W * C) if interleaved else (B * C, W)
    # numbers of the rows of tiles, in the order of memory: plane, row of the plane, column of tiles
    tile_rows = H // grid
    order = permutation.view(B, grid, 1, grid)
    rows = (order // grid * tile_rows + torch.arange(tile_rows)[:, None]) * grid + order % grid
    first = torch.arange(planes).view(B, planes // B, 1, 1, 1) * (H * grid)
    index = (first + rows[:, None]).flatten()
    in_order = images.permute(0, 2, 3, 1) if interleaved else images
    shuffled = in_order.reshape(planes * H * grid, row // grid).index_select(0, index)
    return shuffled.view(B, H, W, C).permute(0, 3, 1, 2) if interleaved else shuffled.view(B, C, H, W)


@_jigsaw.register_kernel("cuda")
def _jigsaw_cuda(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> torch.Tensor:
    from fastfgssl.kernels.jigsaw.triton_kernel import jigsaw_triton

    with torch.cuda.device_of(images):  # Triton launches on the current device
        return jigsaw_triton(images.contiguous(memory_format=_memory_format(images)), permutation, grid)


@_jigsaw.register_fake
def _jigsaw_fake(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> torch.Tensor:
    return torch.empty_like(images, memory_format=_memory_format(images))


def _keep_arguments(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    _, permutation, ctx.grid = inputs
    ctx.save_for_backward(permutation)
    ctx.save_for_forward(permutation)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    (permutation,) = ctx.saved_tensors
    return jigsaw(gradient, permutation.argsort(dim=1), ctx.grid), None, None


_jigsaw.register_autograd(_backward, setup_context=_keep_arguments)


class _Jigsaw(torch.autograd.Function):
    """The operator for forward mode and `torch.func`: it is linear, so its tangent is the jigsaw of the images'."""

    generate_vmap_rule = True
    setup_context = staticmethod(_keep_arguments)
    backward = staticmethod(_backward)

    @staticmethod
    def forward(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> torch.Tensor:
        return _jigsaw(images, permutation, grid)

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *_: None) -> torch.Tensor:
        (permutation,) = ctx.saved_tensors
        return jigsaw(tangent, permutation, ctx.grid)
