"""Pictures that are sound and of no use: too small, of nearly one brightness, or far longer than wide."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastfgssl.archive.outcome import Filtered
from fastfgssl.runtime.errors import UserError

_FEW = (16, 64)  # pixels on a side of those that are looked at first


@dataclass(frozen=True, kw_only=True)
class PictureFilters:
    """Which pictures are left out; 0 leaves out none. Raises UserError for a limit below 0 or an aspect below 1."""

    min_side: int = 0
    """Pixels of the short side, as decoded: pictures with fewer are left out."""
    min_contrast: float = 0.0
    """Standard deviation of brightness, in levels of 255, of the channel that has most of it, through the picture's
    levels: pictures with less are left out. What has but one value is refused before, as constant."""
    max_aspect: float = 0.0
    """Long side by short side: pictures with more are left out."""

    def __post_init__(self) -> None:
        for name in ("min_side", "min_contrast", "max_aspect"):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise UserError(f"{name.replace('_', '-')} must be 0, for no limit, or above, not {value}")
        if 0 < self.max_aspect < 1:
            raise UserError(
                f"max-aspect is the long side by the short one, so it must be 0, for no limit, or 1 or more,"
                f" not {self.max_aspect}"
            )

    def check_size(self, pixels: np.ndarray) -> None:
        """Raises Filtered for `pixels` of [height, width, ...] that are too few or too long."""
        height, width = pixels.shape[:2]
        short, long = sorted((height, width))
        if short < self.min_side:
            raise Filtered(f"too small: {width} x {height} pixels, --min-side is {self.min_side}")
        if self.max_aspect and long > self.max_aspect * short:
            raise Filtered(f"extreme aspect: {width} x {height} pixels, --max-aspect is {self.max_aspect:g}")

    def check_contrast(self, pixels: np.ndarray, levels: tuple[int, int]) -> None:
        """Raises Filtered for uint8 or uint16 [height, width, ...] of too little contrast between `levels`."""
        if not self.min_contrast:
            return
        least = self.min_contrast
        for side in _FEW:
            step = max(1, min(pixels.shape[:2]) // side)
            few = pixels[::step, ::step]
            # Of all pixels, the squared deviations sum up to no less than those of some from their own mean.
            if contrast(few, levels) * math.sqrt(few.size / pixels.size) >= least:  # nearly always
                return
        found = contrast(pixels, levels)
        if found < least:
            raise Filtered(f"nearly constant: a contrast of {found:.2g} levels of 255, --min-contrast is {least:g}")


def contrast(pixels: np.ndarray, levels: tuple[int, int]) -> float:
    """The standard deviation of the channel with most of it, in levels of 255, where `levels` are black and white."""
    low, high = levels
    channels = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1).T.astype(np.float64, order="C")
    if (low, high) != (0, 255) or pixels.dtype != np.uint8:
        channels = np.clip((channels - low) * (255 / max(1, high - low)), 0, 255)
    number, sums = channels.shape[1], channels.sum(axis=1)
    squares = np.einsum("cn,cn->c", channels, channels)  # an eighth of the time that numpy's std takes
    return math.sqrt(max(0.0, *((squares - sums * sums / number) / number).tolist()))
