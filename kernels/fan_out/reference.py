"""The truth of the fan-out, in a few lines of numpy: fast versions must give the same bits.

B images, C channels, H x W pixels, g grid: a jigsaw of g x g tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastfgssl.kernels.jigsaw.reference import jigsaw_reference

FLIP, GRAYSCALE, SOLARISE, VERTICAL_FLIP, TRANSPOSE = 1, 2, 4, 8, 16
"""Bits of a view's flags."""


class Views(NamedTuple):
    """Normalised images [B, H, W, C], float32 or float16."""

    anchor: np.ndarray
    puzzle_view: np.ndarray
    puzzles: tuple[np.ndarray, ...]  # one for each grid


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
    FLIP, GRAYSCALE, SOLARISE, VERTICAL_FLIP and, of square images, TRANSPOSE; permutations: for each grid int
    [B, grid * grid]; mean, std: for each channel, on a scale where white is 1; dtype: float32 or float16, rounded to
    the nearest even once at the end.
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

    def has(bit: int) -> np.ndarray:
        return ((flags & bit) > 0)[:, None, None, None]

    if has(TRANSPOSE).any():
        images = np.where(has(TRANSPOSE), images.swapaxes(1, 2), images)
    images = np.where(has(FLIP), images[:, :, ::-1], images)
    images = np.where(has(VERTICAL_FLIP), images[:, ::-1], images)
    if images.shape[-1] == 3:
        # ITU-R 601-2 in 16-bit fixed point, as Pillow converts to "L"
        luminance = (images.astype(np.uint64) @ np.array([19595, 38470, 7471], dtype=np.uint64) + 32768) >> 16
        images = np.where(has(GRAYSCALE), luminance[..., None].astype(images.dtype), images)
    return np.where(has(SOLARISE) & (images > white // 2), white - images, images)


def _normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    # the constants are rounded to float32 twice, as the operator receives them and as it scales them
    white = float(np.iinfo(images.dtype).max)
    scaled_mean = (white * np.asarray(mean, np.float32).astype(np.float64)).astype(np.float32)
    inverse_std = (1 / (white * np.asarray(std, np.float32).astype(np.float64))).astype(np.float32)
    return (images.astype(np.float32) - scaled_mean) * inverse_std
