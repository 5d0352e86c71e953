"""PNG: stripped and checked against its own checksums, then decoded."""

from __future__ import annotations

from typing import NamedTuple

import imagecodecs
import numpy as np

from fastfgssl.archive.images.levels import Levels, to_levels
from fastfgssl.archive.images.pictures import (
    Picture,
    as_levels,
    damaged,
    open_image,
    orientation_of,
    require_same,
    turn_upright,
)
from fastfgssl.archive.images.strip_png import StrippedPng, strip_png


class Png(NamedTuple):
    """A PNG that is sound."""

    picture: Picture
    data: bytes | None
    """The stripped file, which shows `picture` if it was not turned; None if it has to be encoded anew."""
    animated: bool


def read_png(data: bytes, max_pixels: int) -> Png:
    """The picture of a PNG of any kind; an animation's default picture. Transparency is left out.

    Raises Unusable with the reason.
    """
    stripped = strip_png(data, max_pixels)
    encoded = stripped.data or data
    try:
        levels = _decode(encoded, stripped)
        if stripped.data is None:
            require_same("PNG", levels.pixels, _decode(data, stripped, by_libpng=True).pixels)
    except (OSError, ValueError, SyntaxError, RuntimeError) as error:
        raise damaged("PNG", error) from error
    orientation = orientation_of(data, "PNG") if stripped.tagged else 1
    picture = Picture(
        turn_upright(levels.pixels, orientation) if orientation != 1 else levels.pixels,
        levels.range,
        turned=orientation != 1,
        profile=stripped.profile,
    )
    return Png(picture, stripped.data, stripped.animated)


def _decode(data: bytes, stripped: StrippedPng, by_libpng: bool = False) -> Levels:
    if stripped.bits != 16 and not by_libpng:
        image = open_image(data, "PNG")
        image.load()
        return as_levels(image)
    pixels = imagecodecs.png_decode(data)  # Pillow has no 16-bit colour
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3])
    return to_levels(pixels, declared_bits=stripped.significant_bits)
