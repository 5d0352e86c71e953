"""A decoded picture on its way into an archive: levels, upright, and read alike by two decoders."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from fastfgssl.archive.images.levels import Levels, to_levels
from fastfgssl.archive.outcome import Unusable

ORIENTATION = 0x0112  # the EXIF tag
TURNED = range(2, 9)
"""EXIF's orientations that mean a turned or mirrored picture; 1 is upright, others are invalid."""
# Mean absolute difference, in levels of 255, up to which two decoders show the same picture. Rounding of CMYK and
# palettes stays below 1; of what is misread, a gray + alpha TIFF differs by 18, Lab by 12, floats by 140.
SAME_PICTURE = 2.0
SEVERAL = "only the first of several pages or frames is used"
NO_PROFILE = "its colour profile is not applied"


class Picture(NamedTuple):
    """A picture as it is decoded."""

    pixels: np.ndarray
    """uint8 or uint16, [height, width] if gray or [height, width, 3] as RGB. Upright."""
    levels: tuple[int, int]
    turned: bool = False
    """Whether it was turned upright."""
    part: str = ""
    notes: tuple[str, ...] = ()
    profile: bool = False
    """Whether a profile or a gamma asks for other colours."""


def damaged(format: str, why: object) -> Unusable:
    """The refusal of a file that a decoder cannot read, for the exception or the words `why`."""
    return Unusable(f"damaged or unsupported {format}: {' '.join(str(why).split()) or type(why).__name__}")


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises Unusable for more than `max_pixels` pixels."""
    if width * height > max_pixels:
        raise Unusable(f"too large: {width} x {height} pixels, --max-pixels is {max_pixels}")


def open_image(data: bytes, format: str, as_file: Callable[[bytes], BinaryIO] = io.BytesIO) -> Image.Image:
    """The file as Pillow's plugin `format` opens it, which raises what that raises.

    as_file: how it reads the bytes.
    """
    Image.MAX_IMAGE_PIXELS = None  # --max-pixels takes the place of Pillow's limit
    try:
        return Image.open(as_file(data), formats=(format,))
    except Image.UnidentifiedImageError:  # `open` keeps to itself why the plugin refused the file: ask it
        plugin, _ = Image.OPEN[format]
        plugin(as_file(data), "")
        raise


def is_srgb(profile: bytes) -> bool:
    """Whether an ICC profile is that of sRGB, by its description, in either spelling."""
    return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def as_levels(image: Image.Image) -> Levels:
    """The picture of a Pillow image of any mode, gray or RGB; transparency is left out, not blended.

    Raises Unusable as `to_levels` does.
    """
    if image.mode in ("L", "RGB") or image.mode[0] in "IF":
        return to_levels(np.asarray(image))
    return to_levels(np.asarray(image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")))


def as_image(pixels: np.ndarray) -> Image.Image:
    """A Pillow image in mode L, RGB or I;16; 16-bit colour becomes 8-bit, because Pillow has no other."""
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        pixels = (pixels >> 8).astype(np.uint8)
    return Image.fromarray(pixels)


def upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as its EXIF says."""
    return ImageOps.exif_transpose(image) if exif_orientation(image) != 1 else image


def plain_picture(image: Image.Image) -> Image.Image:
    """The picture in mode L, RGB or I;16, as training sees it: transparency is left out, not blended.

    Raises Unusable for floats and for integers that are no levels of 16 bits: only a file is scaled, which is noted.
    """
    if image.mode in ("L", "RGB", "I;16"):
        return image
    levels = as_levels(image)
    if image.mode == "F" or levels.note:
        raise Unusable(f"pixels are {'32-bit floats' if image.mode == 'F' else 'beyond 16 bits'}: rescale them")
    return as_image(levels.pixels)


def as_gray(pixels: np.ndarray) -> np.ndarray:
    """Colours [height, width, 3] of three equal channels as [height, width]; all others as they are."""
    if pixels.ndim == 2 or (pixels[::8, ::8, 0] != pixels[::8, ::8, 1]).any():  # nearly always, of colour
        return pixels
    return pixels if (pixels != pixels[..., :1]).any() else pixels[..., 0]


def in_8_bits(pixels: np.ndarray, levels: tuple[int, int]) -> np.ndarray:
    """uint8 of uint8 or uint16, of which `levels` are black and white, as training windows them."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = levels
    return np.rint((pixels.astype(np.float32) - low) * (255 / max(1, high - low))).clip(0, 255).astype(np.uint8)


def orientation_of(data: bytes, format: str) -> int:
    """What EXIF or XMP of a file in one of Pillow's formats says: 1 to 8, or 1 if it says nothing valid."""
    try:
        return exif_orientation(open_image(data, format))
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:  # a broken EXIF block makes no bad picture
        return 1


def exif_orientation(image: Image.Image) -> int:
    """As `orientation_of`."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:
        return 1
    return orientation if orientation in TURNED else 1


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` of [height, width, ...] as EXIF's `orientation` says; what is none changes nothing."""
    if orientation >= 5 and orientation in TURNED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def shrink(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """`pixels`, uint8 or uint16 of [height, width] or [height, width, 3], made smaller to that short side."""
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    # In floats, because Pillow's 16-bit resampling goes wrong where bicubic weights overshoot the range.
    channels = [pixels] if pixels.ndim == 2 else [pixels[..., channel] for channel in range(pixels.shape[2])]
    floats = (
        Image.fromarray(channel.astype(np.float32)).resize(size, Image.Resampling.BICUBIC) for channel in channels
    )
    smaller = [np.rint(np.asarray(channel)).clip(0, 65535).astype(np.uint16) for channel in floats]
    return smaller[0] if pixels.ndim == 2 else np.stack(smaller, axis=-1)


def same_picture(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two decoders show the same, of [height, width] or [height, width, channels]; gray equals its RGB."""
    nan = first.dtype.kind == "f" == second.dtype.kind
    if np.array_equal(first, second, equal_nan=nan):  # nearly always
        return True
    if first.shape[:2] != second.shape[:2]:
        return False
    gray, colour = sorted((first, second), key=lambda pixels: pixels.ndim)
    if gray.ndim < colour.ndim and gray.dtype.kind != "f":  # nearly always the same, too
        channels = (colour[..., channel] for channel in range(colour.shape[2]))
        if all(np.array_equal(gray, channel) for channel in channels):
            return True
    first, second = (pixels if pixels.ndim == 3 else pixels[..., None] for pixels in (first, second))
    if first.dtype.kind == "f" or 1 not in (first.shape[2], second.shape[2], first.shape[2] - second.shape[2] + 1):
        return False
    scale = 257 if max(first.dtype.itemsize, second.dtype.itemsize) > 1 else 1
    total = 0
    for rows in range(0, len(first), 256):  # in strips: the copies below are four times the size of the picture
        strip = first[rows : rows + 256].astype(np.int64) - second[rows : rows + 256]
        total += int(np.abs(strip).sum())
    return total <= SAME_PICTURE * scale * first.shape[0] * first.shape[1] * max(first.shape[2], second.shape[2])


def require_same(format: str, first: np.ndarray, second: np.ndarray) -> None:
    """Raises Unusable if two decoders show different pictures."""
    if not same_picture(first, second):
        raise Unusable(f"two decoders differ on this {format}")


def refuse_constant(pixels: np.ndarray) -> None:
    """Raises Unusable if all pixels are alike: decoders have been found to return black without an error."""
    first = pixels[0, 0]
    if (first != pixels[-1, -1]).any():  # nearly always
        return
    one_pixel = pixels.shape[:2] == (1, 1)  # which is small: another reason
    if not one_pixel and (pixels[::16, ::16] == first).all() and (pixels == first).all():
        levels = np.atleast_1d(first).tolist()
        shown = levels if len(set(levels)) > 1 else levels[:1]
        raise Unusable(f"constant: all pixels are {', '.join(map(str, shown))}")
