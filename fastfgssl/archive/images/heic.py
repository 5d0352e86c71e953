"""HEIC, as phones write it: the primary picture of a file, by libheif, where it is installed."""

from __future__ import annotations

import io
import math
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
    file = _library().open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False, remove_stride=False)
    image = file[file.primary_index]
    width, height = image.size
    check_size(width, height, max_pixels)
    pixels = _pixels(image)
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


def _pixels(image: Any) -> np.ndarray:
    """A copy of what is decoded, [height, width, ...]: the library frees its own with the image.

    Where a file lies about its bits, rows are shorter than they should be, and the library's own way to join them
    (`remove_stride`) writes beyond their memory.
    """
    shape, typestr = (image.__array_interface__[what] for what in ("shape", "typestr"))  # decodes it
    (width, height), dtype, channels = image.size, np.dtype(typestr), shape[2:]
    length = width * math.prod(channels) * dtype.itemsize
    rows = np.frombuffer(image.data, np.uint8)
    if length > image.stride or len(rows) < height * image.stride:
        raise damaged("HEIC", f"{width} x {height} pixels of {8 * dtype.itemsize} bits are decoded to fewer")
    used = rows[: height * image.stride].reshape(height, image.stride)[:, :length]
    return np.ascontiguousarray(used).view(dtype).reshape(height, width, *channels)


def _library() -> Any:
    try:
        import pi_heif  # here, since few need it
    except ImportError:
        raise Unusable(
            "unsupported format: HEIC; pip install 'fastfgssl[heic]' to read it, or export it as JPEG or PNG"
        ) from None
    return pi_heif
