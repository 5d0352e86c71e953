"""The truth of the resize, in a few lines of numpy: fast versions must stay within one grey level of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
