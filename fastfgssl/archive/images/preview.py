"""Small JPEGs of pictures, for people who look through a report."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
from PIL import Image

from fastfgssl.archive.images.pictures import in_8_bits, open_image

SIDE = 96
"""Longest side of a preview in pixels."""
_QUALITY = 70
_JPEG = b"\xff\xd8"


def preview(pixels: np.ndarray, levels: tuple[int, int]) -> bytes:
    """A JPEG of at most `SIDE` pixels a side, which is never larger than the picture.

    pixels: uint8 or uint16 of [height, width] or [height, width, 3], of which `levels` are black and white.
    """
    step = max(1, max(pixels.shape[:2]) // (4 * SIDE))  # four pixels of each that is shown are enough to average
    image = Image.fromarray(np.ascontiguousarray(in_8_bits(pixels[::step, ::step], levels)))
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def shown_pixels(data: bytes, levels: tuple[int, int]) -> np.ndarray:
    """The picture of a JPEG or PNG of an archive, uint8 of [height, width] or [height, width, 3].

    A large JPEG is decoded at a fraction of its size. Raises what the decoder does.
    """
    if data.startswith(_JPEG):
        image = open_image(data, "JPEG")
        image.draft(None, (4 * SIDE, 4 * SIDE))
        return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))  # CMYK, too
    pixels = imagecodecs.png_decode(data)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return in_8_bits(pixels, levels)
