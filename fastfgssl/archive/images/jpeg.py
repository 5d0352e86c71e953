"""JPEG: stripped, then decoded by a decoder that takes each warning for what it is."""

from __future__ import annotations

import re
from typing import NamedTuple

import imagecodecs
import numpy as np
import simplejpeg

from fastfgssl.archive.images.levels import to_levels
from fastfgssl.archive.images.pictures import (
    Picture,
    check_size,
    damaged,
    open_image,
    orientation_of,
    same_picture,
    turn_upright,
)
from fastfgssl.archive.images.strip_jpeg import EOI, LOSSLESS, StrippedJpeg, jpeg_frame, strip_jpeg
from fastfgssl.archive.outcome import Unusable

JPEG_LS = 0xF7  # the marker of its frame header
_SPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}
_PADDING = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")
MAX_PADDING = 64
"""Zeros before the end marker that some devices write; more of them are a picture that was not copied whole."""


class Jpeg(NamedTuple):
    """A JPEG that is sound."""

    picture: Picture
    data: bytes | None
    """The stripped file, which shows `picture` if it was not turned; None if training cannot read such files."""
    plain: bool
    """See `StrippedJpeg.plain`."""


def read_jpeg(data: bytes, max_pixels: int) -> Jpeg:
    """The picture of a JPEG: baseline, extended of 12 bits, progressive, lossless, arithmetic; gray, colour, CMYK.

    It is decoded by libjpeg-turbo with warnings as errors: they are the only sign of bytes that were lost within.
    Raises Unusable with the reason.
    """
    stripped = strip_jpeg(data)
    check_size(stripped.width, stripped.height, max_pixels)
    if len(stripped.components) not in _SPACES:
        raise damaged("JPEG", f"it has {len(stripped.components)} channels")
    if stripped.precision != 8 or stripped.frame == LOSSLESS:
        return Jpeg(_upright(_decode_leniently(stripped), data, stripped), None, False)
    kept, pixels = _decode_strictly(stripped)
    if len(stripped.components) == 4:
        pixels = _cmyk_to_rgb(kept, pixels)
    return Jpeg(_upright(Picture(pixels, (0, 255)), data, stripped), kept, stripped.plain)


def is_jpeg_ls(data: bytes) -> bool:
    """Whether a file that begins as JPEGs do is JPEG-LS."""
    return jpeg_frame(data) == JPEG_LS


def decode_encoded(data: bytes) -> np.ndarray | None:
    """A JPEG of 8 bits as uint8 [height, width] or [height, width, 3]; None if a decoder finds the slightest fault."""
    try:
        return _decode(data, 3 if simplejpeg.decode_jpeg_header(data)[2] != "Gray" else 1)
    except ValueError:
        return None


def _decode(data: bytes, channels: int) -> np.ndarray:
    pixels = simplejpeg.decode_jpeg(data, _SPACES[channels])
    return pixels[..., 0] if channels == 1 else pixels


def _decode_strictly(stripped: StrippedJpeg) -> tuple[bytes, np.ndarray]:
    """The file, without padding, and its pixels; a CMYK file's are [height, width, 4]."""
    channels = len(stripped.components)
    try:
        return stripped.data, _decode(stripped.data, channels)
    except ValueError as error:
        if not _PADDING.match(str(error)):
            raise damaged("JPEG", error) from None
        warning = error
    scan = stripped.data[:-2]
    bare = scan.rstrip(b"\0")
    bare += b"\0" * bare.endswith(b"\xff")  # which is a byte 0xff of the scan
    if not 0 < len(scan) - len(bare) <= MAX_PADDING:
        raise damaged("JPEG", warning)
    data = bare + bytes((0xFF, EOI))
    try:
        return data, _decode(data, channels)
    except ValueError as error:
        raise damaged("JPEG", error) from None


def _cmyk_to_rgb(data: bytes, pixels: np.ndarray) -> np.ndarray:
    """As Pillow does it, which knows Adobe's inversion."""
    try:
        image = open_image(data, "JPEG")
        image.load()
    except OSError as error:
        raise damaged("JPEG", error) from error
    if image.mode != "CMYK" or not same_picture(255 - np.asarray(image), pixels):
        raise Unusable("two decoders differ on this JPEG")
    return np.asarray(image.convert("RGB"))


def _decode_leniently(stripped: StrippedJpeg) -> Picture:
    """12 bits and lossless compression, which one decoder alone reads: it is silent on most damage."""
    try:
        pixels = imagecodecs.jpeg8_decode(stripped.data)
    except RuntimeError as error:
        raise damaged("JPEG", error) from error
    if pixels.shape[:2] != (stripped.height, stripped.width) or (pixels.ndim == 3 and pixels.shape[2] == 4):
        raise damaged("JPEG", f"CMYK of {stripped.precision} bits")
    levels = to_levels(pixels, declared_bits=stripped.precision)
    return Picture(levels.pixels, levels.range)


def _upright(picture: Picture, data: bytes, stripped: StrippedJpeg) -> Picture:
    orientation = orientation_of(data, "JPEG") if stripped.tagged else 1
    return picture._replace(
        pixels=turn_upright(picture.pixels, orientation) if orientation != 1 else picture.pixels,
        turned=orientation != 1,
        profile=stripped.profile,
    )
