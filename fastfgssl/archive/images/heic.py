"""HEIC, as phones write it: the primary picture of a file, by libheif, where it is installed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from fastfgssl.archive.images.levels import to_levels
from fastfgssl.archive.images.pictures import SEVERAL, Picture, check_size, damaged, is_srgb
from fastfgssl.archive.outcome import Unusable


def read_heic(data: bytes, max_pixels: int) -> Picture:
    """The primary picture, turned and cropped as the file says; pictures of 10 and 12 bits keep them.

    What EXIF says of orientation does not count in this format (ISO/IEC 23008-12): libheif has turned it.
    Raises Unusable if it is larger than `max_pixels`, before anything is decoded, and without the extra that reads it;
    of damage whatever libheif raises.
    """
    file = _library().open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    image = file[file.primary_index]
    width, height = image.size
    check_size(width, height, max_pixels)
    pixels = np.array(image)  # a copy: the library frees its own with the image
    if pixels.ndim not in (2, 3) or pixels.shape[:2] != (height, width):
        raise damaged("HEIC", f"{width} x {height} pixels are decoded as {pixels.shape}")
    if pixels.ndim == 3:  # transparency is left out
        pixels = pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3]
    bits = image.info.get("bit_depth", 8)
    levels = to_levels(np.ascontiguousarray(pixels), declared_bits=bits if bits > 8 else None)
    return Picture(
        levels.pixels,
        levels.range,
        notes=(SEVERAL,) if len(file) > 1 else (),
        profile=not is_srgb(image.info.get("icc_profile") or b"sRGB"),
    )


def _library() -> Any:
    try:
        import pi_heif  # here, since few need it
    except ImportError:
        raise Unusable(
            "unsupported format: HEIC; pip install 'fastfgssl[heic]' to read it, or export it as JPEG or PNG"
        ) from None
    return pi_heif
