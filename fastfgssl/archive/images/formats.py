"""Formats that an archive does not keep: what a file is, and its pictures as they are to be encoded anew."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import imagecodecs
import numpy as np

from fastfgssl.archive.images.gif import first_frame
from fastfgssl.archive.images.heic import read_heic
from fastfgssl.archive.images.jpeg import is_jpeg_ls
from fastfgssl.archive.images.jpeg_xl import jpeg_xl_size
from fastfgssl.archive.images.levels import to_levels
from fastfgssl.archive.images.pictures import (
    SEVERAL,
    Picture,
    as_levels,
    check_size,
    damaged,
    exif_orientation,
    is_srgb,
    open_image,
    require_same,
    turn_upright,
)
from fastfgssl.archive.images.tiff import read_tiff
from fastfgssl.archive.outcome import UnknownFormat, Unusable

SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"RIFF": "WEBP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
}
_AVIF = (b"avif", b"avis")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BMP_RLE = (1, 2)  # compressions that imagecodecs does not read
_SECOND: dict[str, Callable[[bytes], Any]] = {  # beside Pillow
    "BMP": imagecodecs.bmp_decode,
    "WEBP": imagecodecs.webp_decode,
    "GIF": lambda data: imagecodecs.gif_decode(data, index=0),
    "AVIF": imagecodecs.avif_decode,
}


def identify(data: bytes) -> str:
    """The format of a file, by its first bytes. Raises Unusable for what cannot be read, UnknownFormat for no image."""
    for signature, format in SIGNATURES.items():
        if data.startswith(signature) and (format != "WEBP" or data[8:12] == b"WEBP"):
            return "JPEG-LS" if format == "JPEG" and is_jpeg_ls(data) else format
    if data[4:8] == b"ftyp" and data[8:12] in (*_AVIF, *_HEIC):
        if any(data[place : place + 4] in _AVIF for place in range(8, min(struct.unpack(">I", data[:4])[0], 64), 4)):
            return "AVIF"
        return "HEIC"
    if not data:
        raise Unusable("empty file")
    if data.startswith(b"version https://git-lfs"):
        raise Unusable("not the image but a Git LFS pointer to it: run `git lfs pull`")
    raise UnknownFormat(f"not an image of a known format: it begins with {data[:16]!r}")


def read_pictures(data: bytes, format: str, max_pixels: int, every_page: bool) -> Iterator[Picture | Unusable]:
    """The pictures of a file of `format`, which is neither JPEG nor PNG. Raises Unusable with the reason."""
    if format == "TIFF":
        yield from read_tiff(data, max_pixels, every_page)
        return
    try:
        if format in _SECOND:
            yield _by_pillow(data, format, max_pixels)
        elif format == "HEIC":
            yield read_heic(data, max_pixels)
        else:
            yield _by_imagecodecs(data, format, max_pixels)
    except (Unusable, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # decoders raise whatever the damage leads them to
        raise damaged(format, error) from error


def _by_pillow(data: bytes, format: str, max_pixels: int) -> Picture:
    """Read by Pillow, and by imagecodecs, which has to agree."""
    image = open_image(data, format)
    check_size(*image.size, max_pixels)
    first = first_frame(data, max_pixels) if format == "GIF" else data
    image.load()
    levels = as_levels(image)
    if not (format == "BMP" and struct.unpack_from("<I", data, 30)[0] in _BMP_RLE):
        second = np.asarray(_SECOND[format](first))
        if second.dtype == np.uint16:  # AVIF of 10 or 12 bits, which Pillow makes 8
            levels = to_levels(_plain(second))
        else:
            require_same(format, levels.pixels, _plain(second))
    orientation = exif_orientation(image)
    return Picture(
        turn_upright(levels.pixels, orientation),
        levels.range,
        turned=orientation != 1,
        notes=(SEVERAL,) if getattr(image, "is_animated", False) else (),
        profile=not is_srgb(image.info.get("icc_profile") or b"sRGB"),
    )


def _by_imagecodecs(data: bytes, format: str, max_pixels: int) -> Picture:
    bits: int | None = None
    if format == "JPEG 2000":
        width, height, bits = _jpeg_2000_header(data)
    elif format == "JPEG-LS":
        bits, height, width = struct.unpack_from(">BHH", data, data.find(b"\xff\xf7") + 4)
        data = data[: data.rfind(b"\xff\xd9") + 2]
        if len(data) < 4:  # CharLS would look for it for ever
            raise damaged(format, "its end is missing")
    else:
        width, height = jpeg_xl_size(data)
    check_size(width, height, max_pixels)
    decode: Any = {"JPEG 2000": imagecodecs.jpeg2k_decode, "JPEG-LS": imagecodecs.jpegls_decode}.get(
        format, imagecodecs.jpegxl_decode
    )
    pixels = _plain(np.asarray(decode(data)))
    sizes = ((height, width), (width, height)) if format == "JPEG XL" else ((height, width),)  # it turns by itself
    if pixels.ndim not in (2, 3) or pixels.shape[:2] not in sizes:
        raise damaged(format, f"{width} x {height} pixels are decoded as {pixels.shape}")
    levels = to_levels(pixels, declared_bits=bits if bits and bits > 8 else None)
    return Picture(levels.pixels, levels.range, notes=(levels.note,) if levels.note else ())


def _jpeg_2000_header(data: bytes) -> tuple[int, int, int]:
    """Width, height and bits of its first component, from the codestream's SIZ."""
    place = data.find(b"\xff\x4f\xff\x51")
    if place < 0:
        raise damaged("JPEG 2000", "it has no codestream")
    right, bottom, left, top = struct.unpack_from(">4I", data, place + 8)
    return right - left, bottom - top, (data[place + 42] & 0x7F) + 1


def _plain(pixels: np.ndarray) -> np.ndarray:
    """The first frame of what imagecodecs makes, gray or RGB."""
    if pixels.ndim == 4:
        pixels = pixels[0]
    if pixels.ndim == 3 and pixels.shape[2] in (1, 2):
        pixels = pixels[..., 0]
    return np.ascontiguousarray(pixels[..., :3] if pixels.ndim == 3 else pixels)
