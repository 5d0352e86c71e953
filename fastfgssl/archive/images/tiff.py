"""TIFF: a picture a page, of numbers of any type.

libtiff, through imagecodecs, reads the numbers as they are; Pillow, which knows palettes and colour spaces, reads the
rest. Pages are read by both where both can, and differing is a reason to refuse one.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fastfgssl.archive.images.levels import Levels, to_levels
from fastfgssl.archive.images.pictures import (
    SEVERAL,
    TURNED,
    Picture,
    as_levels,
    check_size,
    damaged,
    is_srgb,
    open_image,
    require_same,
    turn_upright,
)
from fastfgssl.archive.outcome import Unusable

MAX_PAGES = 10_000
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR = 256, 257, 258, 262, 274, 277, 284
_SUBFILE, _OLD_SUBFILE, _MAX_SAMPLE, _EXTRA, _FORMAT, _PROFILE = 254, 255, 281, 338, 339, 34675
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _LAB = 0, 1, 2, 8
_REDUCED, _MASK = 1, 4  # of the new subfile type
_OLD_REDUCED = 2


class _Page(NamedTuple):
    number: int
    """In the file, from 0."""
    place: int
    """Where its directory lies."""
    tags: dict[int, Any]

    def value(self, tag: int, default: int) -> int:
        found = self.tags.get(tag, default)
        return int(found[0]) if isinstance(found, tuple) else int(found)

    @property
    def orientation(self) -> int:
        return self.value(_ORIENTATION, 1)

    @property
    def is_picture(self) -> bool:
        """Neither a thumbnail nor a mask of another page."""
        return not self.value(_SUBFILE, 0) & (_REDUCED | _MASK) and self.value(_OLD_SUBFILE, 1) != _OLD_REDUCED


class _FirstPage(io.BytesIO):
    """A TIFF's bytes with the page at `place` as the first, to which Pillow need not walk through all before it."""

    def __init__(self, data: bytes, place: int) -> None:
        super().__init__(data)
        before, number = (data[:8], "Q") if b"+" in data[2:4] else (data[:4], "I")
        self._header = before + struct.pack(f"{'<' if data.startswith(b'II') else '>'}{number}", place)

    def read(self, size: int | None = -1) -> bytes:
        at = self.tell()
        data = super().read(size)
        of_header = self._header[at : at + len(data)]
        return of_header + data[len(of_header) :] if of_header else data


def read_tiff(data: bytes, max_pixels: int, every_page: bool) -> Iterator[Picture | Unusable]:
    """The pages of a TIFF or BigTIFF, upright, but for thumbnails and masks; the first of them unless `every_page`.

    A page that is damaged, or too large, costs itself alone.
    """
    pages, error = _pages(data)
    wanted = [page for page in pages if page.is_picture] or pages
    for page in wanted if every_page else wanted[:1]:
        part = f"page {page.number + 1}" if every_page and len(wanted) > 1 else ""
        try:
            picture = _read(data, page, max_pixels)
            if len(wanted) > 1 and not every_page:
                picture = picture._replace(notes=(*picture.notes, SEVERAL))
            yield picture._replace(part=part)
        except Unusable as unusable:
            yield unusable.at(part)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as failure:  # Pillow and libtiff raise whatever the damage leads them to
            yield damaged("TIFF", failure).at(part)
    if error is not None and (every_page or not wanted):
        yield error.at(f"page {len(pages) + 1}" if pages else "")


def _pages(data: bytes) -> tuple[list[_Page], Unusable | None]:
    """All that can be found, and what is wrong with the next."""
    file = io.BytesIO(data)
    pages: list[_Page] = []
    seen = {0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tags that are of no interest here
            big = b"+" in data[2:4]
            directory = ImageFileDirectory_v2(data[: 16 if big else 8])
            place = directory.next
            while place not in seen:
                if len(pages) == MAX_PAGES:
                    return pages, Unusable(f"too many pages: above {MAX_PAGES} in a TIFF")
                seen.add(place)
                file.seek(place)
                directory.load(file)
                if _WIDTH not in directory or _LENGTH not in directory:
                    return pages, damaged("TIFF", "a page has no size")
                pages.append(_Page(len(pages), place, dict(directory)))
                place = directory.next
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as failure:
        return pages, damaged("TIFF", failure)
    return pages, None if pages else damaged("TIFF", "it has no page")


def _read(data: bytes, page: _Page, max_pixels: int) -> Picture:
    check_size(page.value(_WIDTH, 0), page.value(_LENGTH, 0), max_pixels)
    photometric = page.value(_PHOTOMETRIC, _BLACK_IS_ZERO)
    bits = page.value(_BITS, 1)
    numbers = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) and bits in (8, 16, 32, 64)
    levels = _numbers(data, page, photometric == _WHITE_IS_ZERO) if numbers else _colours(data, page, photometric)
    return Picture(
        levels.pixels,
        levels.range,
        turned=page.orientation in TURNED,
        notes=(levels.note,) if levels.note else (),
        profile=photometric != _LAB and not is_srgb(page.tags.get(_PROFILE, b"sRGB")),
    )


def _numbers(data: bytes, page: _Page, white_is_zero: bool) -> Levels:
    """A page whose samples are levels of gray, or of red, green and blue; upright."""
    raw = imagecodecs.tiff_decode(data, page.number)
    samples = page.value(_SAMPLES, 1)
    if samples > 1 and page.value(_PLANAR, 1) == 2:
        raw = np.moveaxis(raw, 0, -1)
    shape = (page.value(_LENGTH, 0), page.value(_WIDTH, 0))
    if raw.shape != (shape if samples == 1 else (*shape, samples)):
        raise damaged("TIFF", f"a page of {shape} and {samples} samples is decoded as {raw.shape}")
    raw = turn_upright(raw, page.orientation)
    opinion = _opinion(data, page, raw)
    if opinion is not None:
        require_same("TIFF", opinion, raw)
    colours = 3 if page.value(_PHOTOMETRIC, 1) == _RGB else 1
    if samples < colours:
        raise damaged("TIFF", f"a colour page has {samples} samples")
    values = raw if samples == 1 else raw[..., 0] if colours == 1 else raw[..., :3]
    declared = page.value(_MAX_SAMPLE, 0)
    return to_levels(
        values,
        declared_bits=declared.bit_length() if 255 < declared < 65535 else None,
        white_is_zero=white_is_zero,
    )


def _opinion(data: bytes, page: _Page, raw: np.ndarray) -> np.ndarray | None:
    """What another reader makes of the samples, upright and in the range of `raw`; None if none reads such."""
    samples = page.value(_SAMPLES, 1)
    if raw.dtype == np.uint16 and samples == 3:  # Pillow has no 16-bit colour, and scrambles its planes
        if page.orientation in TURNED:
            return None  # libtiff's conversion mirrors but does not turn
        return imagecodecs.tiff_decode(data, page.number, asrgb=True)[..., :3].astype(np.uint16) * 257
    try:
        image = _open(data, page)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:
        return None  # signed colour, half floats, 64 bits: libtiff alone reads them
    if image.mode not in ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I", "F"):
        return None
    pixels = np.asarray(image)
    if raw.dtype == np.uint8 and samples == 1 and page.value(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        pixels = ~pixels  # Pillow has turned it; 16 bits it leaves as they are
    return pixels if pixels.shape == raw.shape and (raw.dtype.itemsize == 1) == (pixels.dtype.itemsize == 1) else None


def _colours(data: bytes, page: _Page, photometric: int) -> Levels:
    """A page of a palette, of few or odd bits, or of a colour space other than RGB; upright."""
    image = _open(data, page)
    levels = as_levels(image)
    bits = page.value(_BITS, 1)
    if photometric == _LAB:  # libtiff converts it with another white
        raw = imagecodecs.tiff_decode(data, page.number)
        require_same("TIFF", np.asarray(image), turn_upright(raw, page.orientation))
    elif bits in (1, 2, 4, 8) and _EXTRA not in page.tags and page.orientation not in TURNED:
        # libtiff multiplies by transparency, and mirrors but does not turn
        rgb = imagecodecs.tiff_decode(data, page.number, asrgb=True)[..., :3]
        require_same("TIFF", levels.pixels, rgb)
    return levels if bits != 12 else Levels(levels.pixels, (0, 4095))


def _open(data: bytes, page: _Page) -> Image.Image:
    image = open_image(data, "TIFF", partial(_FirstPage, place=page.place))
    image.load()  # which turns it upright
    return image
