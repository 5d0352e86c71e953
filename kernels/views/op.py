"""The public jigsaw: shuffles the tiles of images that are tensors already, on any device, with gradients."""

from __future__ import annotations

import torch


def jigsaw(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> torch.Tensor:
    """Cuts images into grid x grid tiles and shuffles them; differentiable in `images`.

    images: [B, C, H, W], any dtype and memory format; permutation: int64 [B, grid * grid] on the same device, each row
    a permutation (not checked: it would wait for the GPU). Output tile t is input tile permutation[b, t], row-major.
    Returns a tensor like `images`, in its memory format. Raises ValueError naming the argument that does not fit.
    """
    if images.ndim != 4:
        raise ValueError(f"images: must be [B, C, H, W], got shape {list(images.shape)}")
    B, C, H, W = images.shape
    if grid < 1 or H % grid or W % grid:
        raise ValueError(f"grid = {grid}: must divide the images' height {H} and width {W}")
    if permutation.shape != (B, grid * grid):
        raise ValueError(f"permutation: must be [{B}, {grid * grid}], got shape {list(permutation.shape)}")
    if permutation.dtype != torch.int64:
        raise ValueError(f"permutation: must be int64, got {permutation.dtype}")
    if permutation.device != images.device:
        raise ValueError(f"permutation: must be on {images.device} like the images, got {permutation.device}")
    h, w = H // grid, W // grid
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    # a view of the tiles with the batch and tile axes first; indexing them by the permutation is the only copy
    tiles = images.unflatten(3, (grid, w)).unflatten(2, (grid, h))  # B C gy h gx w
    batch = torch.arange(B, device=images.device)[:, None]
    shuffled = tiles.permute(0, 2, 4, 1, 3, 5)[batch, permutation // grid, permutation % grid]  # B T C h w
    shuffled = shuffled.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)
    return shuffled.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
