"""An image on its way into the archive: decoded completely, upright, nothing but pixels, not too large.

What goes into a shard is a JPEG or a PNG of tables and pixels. A file of these formats keeps its compressed picture,
and the rest of it is left out; it is encoded anew only if it must be, and so is each picture of every other format.
Every file is decoded by a strict decoder, which says what is wrong with a damaged one, and by a second that has to
agree; see `_prepare_jpeg` for the one exception.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import imagecodecs
import numpy as np
from PIL import Image

from fastfgssl.archive.building.near_duplicates import thumbnail
from fastfgssl.archive.images.burned_in import without_text
from fastfgssl.archive.images.filters import PictureFilters
from fastfgssl.archive.images.formats import identify, read_pictures
from fastfgssl.archive.images.hashes import PIXEL_HASH, hash_of_pixels
from fastfgssl.archive.images.jpeg import decode_encoded, read_jpeg
from fastfgssl.archive.images.pictures import (
    NO_PROFILE,
    SEVERAL,
    Picture,
    as_gray,
    as_image,
    in_8_bits,
    refuse_constant,
    same_picture,
    shrink,
)
from fastfgssl.archive.images.png import read_png
from fastfgssl.archive.images.training_decoder import TrainingDecoder as TrainingDecoder  # where others look for it
from fastfgssl.archive.outcome import Facts, Filtered, PreparedImage, Unusable
from fastfgssl.runtime.errors import UserError, require_one_of

_JPEG_QUALITY = 95
_PNG_LEVEL = 3  # a third to a fifth of the time of level 6, for 1 to 3 % more bytes
_PNG_FILTER = imagecodecs.PNG.FILTER.PAETH  # three quarters of the time of trying all, for 0.96 to 1.03 times the bytes


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What images become."""

    short_side: int | None = None
    """Larger images are made smaller, to this many pixels on their short side."""
    max_pixels: int = 100_000_000
    """Larger ones are refused before any pixel is decoded."""
    pages: Literal["first", "all"] = "all"
    """Of a TIFF with several."""
    encode: str = "keep"
    """keep: JPEG and PNG stay as they are where they can, a JPEG that cannot becomes a JPEG of quality 95, all else
    PNG. jpeg:N: pictures of 8 bits that are not JPEG become JPEG of quality N, and so does a JPEG that cannot stay.
    png: all become PNG, which loses nothing."""

    burned_in: Literal["skip", "keep", "mask"] = "skip"
    """What becomes of pictures with text in their pixels, see `burned_in.without_text`."""
    find_text: Literal["dicom", "all"] = "dicom"
    """Which are looked at for text: those of DICOM files, or of all."""
    pixel_hash: str = PIXEL_HASH
    """By which pictures are found to be the same: one of `hashes.PIXEL_HASHES`."""
    thumbnails: bool = False
    """Whether the structure of each is kept beside it, by which near-duplicates are found."""
    filters: PictureFilters = field(default_factory=PictureFilters)
    """Which are left out, though they are sound."""

    def __post_init__(self) -> None:
        if self.pages not in ("first", "all"):
            raise UserError(f"pages must be first or all, not {self.pages}")
        require_one_of("burned-in", self.burned_in, ("skip", "keep", "mask"))
        require_one_of("find-text", self.find_text, ("dicom", "all"))
        if self.encode not in ("keep", "png") and not 1 <= self.quality <= 100:
            raise UserError(f"encode must be keep, png or jpeg:N with N of 1 to 100, not {self.encode}")

    @property
    def quality(self) -> int:
        """Of a JPEG that is written; 0 if `encode` is none of its values."""
        found = re.fullmatch(r"jpeg:(\d{1,3})", self.encode)
        return int(found[1]) if found else _JPEG_QUALITY if self.encode == "keep" else 0


def prepare_file(data: bytes, decoder: TrainingDecoder, settings: ImageSettings) -> Iterator[PreparedImage | Unusable]:
    """The images of a file's bytes, each as it goes into a shard, or why it does not.

    One for most files; several for the pages of a TIFF, with their `part`. A picture keeps its compressed bytes unless
    EXIF says that it is not upright, its short side is above `short_side`, or training would see something else.
    Gray and colour of 16 bits stay 16-bit. Colour profiles are left out and not applied, which `notes` tells.
    """
    try:
        # DICOM, which has b"DICM" at 128, is dispatched here: it yields what `encode_picture` makes of its frames.
        format = identify(data)
        if format == "JPEG":
            yield _prepare_jpeg(data, decoder, settings)
        elif format == "PNG":
            yield _prepare_png(data, decoder, settings)
        else:
            for picture in read_pictures(data, format, settings.max_pixels, settings.pages == "all"):
                if isinstance(picture, Unusable):
                    yield picture
                else:
                    yield from _prepare_page(picture, format, settings)
    except Unusable as unusable:
        yield unusable


def encode_picture(
    picture: Image.Image | np.ndarray,
    settings: ImageSettings,
    *,
    levels: tuple[int, int] = (0, 255),
    part: str = "",
    facts: Facts | None = None,
    changes: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    lossy: bool = False,
) -> PreparedImage:
    """A decoded picture, made smaller if `settings` ask for it, encoded, and verified by a decoder.

    All decoders make the same of a PNG or JPEG that is written here; tests hold that against training's.
    picture: in mode L, RGB or I;16, or uint8 or uint16 of [height, width] or [height, width, 3]. lossy: it was a JPEG,
    so that JPEG of high quality is no harm. changes: why it is encoded anew. The rest: see `PreparedImage`.
    Raises Filtered for a picture that `settings` leave out, Unusable for a constant one, and if the decoder shows
    another.
    """
    pixels = np.ascontiguousarray(picture)
    _require_wanted(pixels, levels, settings)
    if settings.short_side is not None and min(pixels.shape[:2]) > settings.short_side:
        pixels = shrink(pixels, settings.short_side)
        changes = (*changes, "made smaller")
    as_jpeg = pixels.dtype == np.uint8 and settings.quality and (lossy or settings.encode != "keep")
    if as_jpeg:
        data = _encode_jpeg(pixels, settings.quality)
        shown = decode_encoded(data)
    else:
        data = _encode_png(pixels)
        shown = pixels if np.array_equal(imagecodecs.png_decode(data), pixels) else None
    if shown is None:
        raise Unusable("encoding failed: decoded, it is another picture")
    return _prepared(data, "jpeg" if as_jpeg else "png", shown, levels, changes, notes, part, facts, settings)


def read_picture(data: bytes, *, max_pixels: int) -> Image.Image:
    """The first picture of a file as training sees it: upright, in mode L or RGB, deep ones through their levels.

    Raises Unusable with the reason.
    """
    picture = _first_picture(data, max_pixels)
    return Image.fromarray(in_8_bits(picture.pixels, picture.levels))


def thumbnail_of_sample(data: bytes) -> np.ndarray:
    """int8 [D]: the thumbnail of an image as a shard holds it, which is what it was before it came there.

    Raises Unusable, and what decoders do, for bytes that are damaged.
    """
    return thumbnail(as_image(as_gray(_first_picture(data, sys.maxsize).pixels)))


def _first_picture(data: bytes, max_pixels: int) -> Picture:
    format = identify(data)
    if format == "JPEG":
        return read_jpeg(data, max_pixels).picture
    if format == "PNG":
        return read_png(data, max_pixels).picture
    picture = next(read_pictures(data, format, max_pixels, every_page=False))
    if isinstance(picture, Unusable):
        raise picture
    return picture


def _prepare_jpeg(data: bytes, decoder: TrainingDecoder, settings: ImageSettings) -> PreparedImage:
    """A JPEG, decoded once if it is `plain`: every libjpeg decodes such a file to the same pixels, training's too.

    Tests hold that against both decoders, on damaged files too. All others have to be decoded alike by the training
    decoder; one that is not is encoded anew, because strict decoding has shown that the file is sound.
    """
    jpeg = read_jpeg(data, settings.max_pixels)
    picture = jpeg.picture
    changes = ["turned upright"] if picture.turned else []
    if jpeg.data is None:
        return _finish(picture, None, "", ["12-bit or lossless JPEG became PNG", *changes], settings)
    if not jpeg.plain and not picture.turned and not _shows(decoder, jpeg.data, picture):
        changes.append("JPEG is not read rightly in training")
    return _finish(picture, jpeg.data, "jpeg", changes, settings)


def _prepare_png(data: bytes, decoder: TrainingDecoder, settings: ImageSettings) -> PreparedImage:
    """A PNG, whose checksums have shown that it is sound: it is encoded anew if the training decoder differs."""
    png = read_png(data, settings.max_pixels)
    picture = png.picture._replace(notes=(SEVERAL,) if png.animated else ())
    changes = ["turned upright"] if picture.turned else []
    if png.data is None:
        changes.append("held more than its picture")
    elif not picture.turned and not _shows(decoder, png.data, picture):
        changes.append("PNG is not read rightly in training")
    return _finish(picture, png.data, "png", changes, settings)


def _prepare_page(picture: Picture, format: str, settings: ImageSettings) -> Iterator[PreparedImage | Unusable]:
    changes = ["turned upright"] if picture.turned else []
    try:
        yield _finish(picture, None, format, [f"{format} was encoded anew", *changes], settings)
    except Unusable as unusable:
        yield unusable.at(picture.part)


def _finish(
    picture: Picture,
    kept: bytes | None,
    format: str,
    changes: list[str],
    settings: ImageSettings,
) -> PreparedImage:
    """With the bytes that are `kept`, if nothing must change."""
    notes = (*picture.notes, NO_PROFILE) if picture.profile else picture.notes
    if settings.find_text == "all":
        pixels, painted = without_text(picture.pixels, picture.levels, settings.burned_in)
        picture, changes = picture._replace(pixels=pixels), [*changes, *painted]
    larger = settings.short_side is not None and min(picture.pixels.shape[:2]) > settings.short_side
    if format == "jpeg" and settings.encode == "png":
        changes.append("JPEG became PNG")
    elif format == "png" and settings.encode.startswith("jpeg") and picture.pixels.dtype == np.uint8:
        changes.append("PNG became JPEG")
    if kept is not None and not changes and not larger:
        _require_wanted(picture.pixels, picture.levels, settings)
        return _prepared(kept, format, picture.pixels, picture.levels, (), notes, picture.part, None, settings)
    return encode_picture(
        picture.pixels,
        settings,
        levels=picture.levels,
        part=picture.part,
        changes=tuple(changes),
        notes=notes,
        lossy=format == "jpeg",
    )


def _require_wanted(pixels: np.ndarray, levels: tuple[int, int], settings: ImageSettings) -> None:
    try:
        settings.filters.check_size(pixels)
        refuse_constant(pixels)
        settings.filters.check_contrast(pixels, levels)
    except Filtered as filtered:
        raise filtered.showing(pixels, levels) from None


def _prepared(
    data: bytes,
    format: str,
    pixels: np.ndarray,
    levels: tuple[int, int],
    changes: tuple[str, ...],
    notes: tuple[str, ...],
    part: str,
    facts: Facts | None,
    settings: ImageSettings,
) -> PreparedImage:
    """pixels: those that `data` shows."""
    height, width = pixels.shape[:2]
    bit_depth = 8 * pixels.dtype.itemsize
    pixels = as_gray(pixels)
    seen = hash_of_pixels(pixels, levels, settings.pixel_hash)
    structure = thumbnail(as_image(pixels)).tobytes() if settings.thumbnails else b""
    return PreparedImage(data, format, width, height, bit_depth, changes, notes, levels, part, facts, seen, structure)


def _shows(decoder: TrainingDecoder, data: bytes, picture: Picture) -> bool:
    """Whether the training decoder makes `picture` of `data`."""
    decoded = decoder.decode(data, picture.pixels.dtype)
    return decoded is not None and same_picture(decoded, picture.pixels)


def _encode_png(pixels: np.ndarray) -> bytes:
    most = pixels.nbytes + pixels.nbytes // 100 + len(pixels) + 1024  # by itself it forgets a byte for each row
    return bytes(imagecodecs.png_encode(pixels, _PNG_LEVEL, filter=_PNG_FILTER, out=most))


def _encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
    return buffer.getvalue()
