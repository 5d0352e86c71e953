"""The truth of the views, in a few lines of numpy and torch.

Fast versions of the fan-out and the jigsaw must give the same bits; those of resize and blur must stay within one grey
level of the float64 numbers here.

B images, C channels, H x W pixels, g grid: a jigsaw of g x g tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

FLIP, GRAYSCALE, SOLARISE = 1, 2, 4
"""Bits of a view's flags."""


class Views(NamedTuple):
    """Normalised images [B, H, W, C], float32 or float16."""

    anchor: np.ndarray
    puzzle_view: np.ndarray
    puzzles: tuple[np.ndarray, ...]  # one for each grid


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


def fan_out_reference(
    puzzle_images: np.ndarray,
    anchor_images: np.ndarray,
    *,
    puzzle_flags: np.ndarray,
    anchor_flags: np.ndarray,
    permutations: Sequence[np.ndarray],
    grids: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: type = np.float32,
) -> Views:
    """Anchor, puzzle view and every puzzle of a batch.

    puzzle_images, anchor_images: uint8 or uint16 [B, H, W, C], the sources of the two views; *_flags: int [B], sums of
    FLIP, GRAYSCALE and SOLARISE; permutations: for each grid int [B, grid * grid]; mean, std: for each channel, on a
    scale where white is 1; dtype: float32 or float16, rounded to the nearest even once at the end.
    """
    anchor = _normalise(_distort(anchor_images, anchor_flags), mean, std)
    puzzle_view = _normalise(_distort(puzzle_images, puzzle_flags), mean, std)
    as_nchw = torch.from_numpy(puzzle_view).permute(0, 3, 1, 2)
    puzzles = [
        jigsaw_reference(as_nchw, torch.as_tensor(permutation, dtype=torch.int64), grid).permute(0, 2, 3, 1).numpy()
        for permutation, grid in zip(permutations, grids, strict=True)
    ]
    return Views(anchor.astype(dtype), puzzle_view.astype(dtype), tuple(puzzle.astype(dtype) for puzzle in puzzles))


def _distort(images: np.ndarray, flags: np.ndarray) -> np.ndarray:
    white = np.iinfo(images.dtype).max
    flip, grayscale, solarise = (((flags & bit) > 0)[:, None, None, None] for bit in (FLIP, GRAYSCALE, SOLARISE))
    images = np.where(flip, images[:, :, ::-1], images)
    if images.shape[-1] == 3:
        # ITU-R 601-2 in 16-bit fixed point, as Pillow converts to "L"
        luminance = (images.astype(np.uint64) @ np.array([19595, 38470, 7471], dtype=np.uint64) + 32768) >> 16
        images = np.where(grayscale, luminance[..., None].astype(images.dtype), images)
    return np.where(solarise & (images > white // 2), white - images, images)


def _normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    # the constants are rounded to float32 twice, as the operator receives them and as it scales them
    white = float(np.iinfo(images.dtype).max)
    scaled_mean = (white * np.float32(mean).astype(np.float64)).astype(np.float32)
    inverse_std = (1 / (white * np.float32(std).astype(np.float64))).astype(np.float32)
    return (images.astype(np.float32) - scaled_mean) * inverse_std


def resize_reference(
    image: np.ndarray, size: int, *, interpolation: str, region: Sequence[int] | None = None
) -> np.ndarray:
    """A region of an image at size x size pixels, antialiased, in float64, neither rounded nor clamped.

    image: [H, W, C]; interpolation: linear or cubic; region: y0, x0, y1, x1, the whole image unless given.
    """
    y0, x0, y1, x1 = region or (0, 0, *image.shape[:2])
    rows, columns = (_resize_matrix(length, size, interpolation) for length in (y1 - y0, x1 - x0))
    return np.einsum("yi,ijc,xj->yxc", rows, image[y0:y1, x0:x1].astype(np.float64), columns, optimize=True)


def _resize_matrix(length: int, size: int, interpolation: str) -> np.ndarray:
    """[size, length]: the share of each input sample in each output sample, as Pillow and torchvision define it."""
    scale = length / size
    widening = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    offsets = np.abs(np.arange(length) + 0.5 - centres[:, None]) / widening
    if interpolation == "linear":
        weights, support = np.maximum(1 - offsets, 0), widening
    else:  # Catmull-Rom: a = -1/2
        near, far = (1.5 * offsets - 2.5) * offsets**2 + 1, ((-0.5 * offsets + 2.5) * offsets - 4) * offsets + 2
        weights, support = np.where(offsets < 1, near, np.where(offsets < 2, far, 0)), 2 * widening
    # samples whose centres round out of the filter's reach are left out, even where it is not quite zero
    first = np.floor(centres - support + 0.5)[:, None]
    end = np.floor(centres + support + 0.5)[:, None]
    weights = np.where((np.arange(length) >= first) & (np.arange(length) < end), weights, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def blur_reference(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur in float64, not rounded: radius ceil(3 sigma), edges reflected about the end samples.

    image: [H, W, C]; sigma > 0 in pixels.
    """
    radius = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    # numpy's "reflect" refuses an axis of one sample, which reflection leaves as it is
    modes = ["reflect" if length > 1 else "edge" for length in image.shape[:2]]
    padded = np.pad(image.astype(np.float64), ((radius, radius), (0, 0), (0, 0)), mode=modes[0])
    padded = np.pad(padded, ((0, 0), (radius, radius), (0, 0)), mode=modes[1])
    rows = sum(weight * padded[i : i + image.shape[0]] for i, weight in enumerate(kernel))
    return sum(weight * rows[:, i : i + image.shape[1]] for i, weight in enumerate(kernel))
