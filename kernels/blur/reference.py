"""The truth of the blur, in a few lines of numpy: fast versions must stay within one grey level of it."""

from __future__ import annotations

from typing import Literal

import numpy as np


def blur_reference(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur in float64, not rounded: radius ceil(3 sigma), edges reflected about the end samples.

    image: [H, W, C]; sigma > 0 in pixels.
    """
    radius = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    # numpy's "reflect" refuses an axis of one sample, which reflection leaves as it is
    modes: list[Literal["reflect", "edge"]] = ["reflect" if length > 1 else "edge" for length in image.shape[:2]]
    padded = np.pad(image.astype(np.float64), ((radius, radius), (0, 0), (0, 0)), mode=modes[0])
    padded = np.pad(padded, ((0, 0), (radius, radius), (0, 0)), mode=modes[1])
    rows = sum(weight * padded[i : i + image.shape[0]] for i, weight in enumerate(kernel))
    return sum(weight * rows[:, i : i + image.shape[1]] for i, weight in enumerate(kernel))
