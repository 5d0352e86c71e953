"""The truth of the jigsaw, in a few lines of torch: fast versions must give the same bits.

B images, C channels, H x W pixels, grid: tiles a side.
"""

from __future__ import annotations

import torch


def require_jigsaw_arguments(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> None:
    """Raises ValueError naming the argument of a jigsaw that does not fit, the same for all of its versions."""
    for name, value in (("images", images), ("permutation", permutation)):
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name}: must be a tensor, got {type(value).__name__}")
    if images.ndim != 4:
        raise ValueError(f"images: must be [B, C, H, W], got shape {list(images.shape)}")
    B, _, H, W = images.shape
    if images.numel() == 0:
        raise ValueError(f"images: must not be empty, got shape {list(images.shape)}")
    if not isinstance(grid, int):
        raise ValueError(f"grid = {grid}: must be an int, got {type(grid).__name__}")
    if grid < 1 or H % grid or W % grid:
        raise ValueError(f"grid = {grid}: must divide the images' height {H} and width {W}")
    if permutation.shape != (B, grid * grid):
        raise ValueError(f"permutation: must be [{B}, {grid * grid}], got shape {list(permutation.shape)}")
    if permutation.dtype != torch.int64:
        raise ValueError(f"permutation: must be int64, got {permutation.dtype}")
    if permutation.device != images.device:
        raise ValueError(f"permutation: must be on {images.device} like the images, got {permutation.device}")


def jigsaw_reference(images: torch.Tensor, permutation: torch.Tensor, grid: int) -> torch.Tensor:
    """Cuts images into grid x grid tiles and shuffles them.

    images: [B, C, H, W]; permutation: int64 [B, grid * grid]. Output tile t is input tile permutation[b, t], row-major.
    """
    require_jigsaw_arguments(images, permutation, grid)
    B, C, H, W = images.shape
    tiles_BTChw = images.reshape(B, C, grid, H // grid, grid, W // grid).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    shuffled_BTChw = torch.stack([tiles_Thw[order] for tiles_Thw, order in zip(tiles_BTChw, permutation, strict=True)])
    return shuffled_BTChw.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)
