"""Whole slides as tiles: all of one magnification, where there is tissue, each with its place.

OpenSlide reads them, of files in memory: of one, or of the levels of a DICOM slide.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fastfgssl.archive.outcome import Filtered, Unusable
from fastfgssl.runtime.errors import UserError, in_a_line

SATURATION, BRIGHTNESS, TISSUE = 20, 32, 0.1
"""A pixel shows tissue if its saturation (of HSV, 0 to 255) is above the first and its value above the second; a tile
is background if fewer of its pixels do than the last says."""
_SAME = 0.01  # by which share magnifications may differ and count as one
_LOOK = 16  # pixels on a side in which a tile is looked at for tissue, at least
_MOST_TILES = 1 << 20
_BYTES_OF_TILE = 16  # of a slide's file, at least, beyond some thousand tiles: its empty regions may take none
_FREE_TILES = 1 << 12
_IN_A_ROW = 256  # tiles that cannot be read, after which nothing more is expected
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, kw_only=True)
class SlideSettings:
    """How slides become tiles. Raises UserError if OpenSlide is not installed."""

    mpp: float | None = None
    """Microns from one pixel of a tile to the next; None reads slides as any other TIFF."""
    tile: int = 256
    """Pixels on a side."""

    def __post_init__(self) -> None:
        if self.mpp is not None:
            _library()


class Tile(NamedTuple):
    pixels: np.ndarray
    """uint8 [tile, tile, 3]."""
    part: str
    """`tile X Y`."""
    mpp: float
    """What it has: as asked within 1 %."""
    level: int
    """Of the slide, that it was read from."""
    x: int
    y: int
    """Of its upper left corner, in pixels of level 0."""


def slide_tiles(data: bytes | list[bytes], settings: SlideSettings) -> Iterator[Tile | Unusable] | None:
    """The tiles of a slide's bytes, row by row, and in place of each that is background or damaged the reason.

    data: of its file, or of its files, each a level, if it is DICOM; labels and other pictures of it are not looked at.

    Only whole tiles are taken, so less than one on the right and below is left out. None if it is no slide. Raises
    Unusable if it has no magnification, a lower one than is asked for, or less than a tile.
    """
    files = data if isinstance(data, list) else [data]
    if settings.mpp is None or (files is not data and data[:4] not in _TIFF):
        return None
    slide = _Slide(files, in_folder=files is data)
    try:
        if _library().OpenSlide.detect_format(slide.path) is None:
            slide.close()
            return None
        slide.open()
        return _tiles(slide, _grid(slide, settings, sum(map(len, files))), settings)
    except BaseException:
        slide.close()
        raise


class _Slide:
    """A slide in memory: of one file, or of several in a folder of links to them, among which OpenSlide looks."""

    def __init__(self, files: Sequence[bytes], *, in_folder: bool) -> None:
        self.slide: Any = None
        self._files: list[int] = []
        self._folder: tempfile.TemporaryDirectory | None = None
        try:
            for data in files:
                self._files.append(_in_memory(data))
            self.path = f"/proc/self/fd/{self._files[0]}"
            if in_folder:
                self._folder = tempfile.TemporaryDirectory()
                for number, file in enumerate(self._files):
                    Path(self._folder.name, f"{number}.dcm").symlink_to(f"/proc/self/fd/{file}")
                self.path = f"{self._folder.name}/0.dcm"
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        """Raises Unusable if it is damaged."""
        try:
            self.slide = _library().OpenSlide(self.path)
        except _library().OpenSlideError as error:
            raise Unusable(f"damaged slide: {in_a_line(error)}") from None

    def region(self, x: int, y: int, level: int, side: int) -> np.ndarray:
        """uint8 [side, side, 3] from a place of level 0 on; what lies outside is white. Raises Unusable."""
        try:
            image = self.slide.read_region((x, y), level, (side, side))
        except _library().OpenSlideError as error:
            self.slide.close()
            self.open()  # after an error it would give nothing more
            raise Unusable(f"damaged tile: {in_a_line(error)}") from None
        pixels = np.asarray(image)
        return np.where(pixels[..., 3:] == 255, pixels[..., :3], np.uint8(255))

    def close(self) -> None:
        if self.slide is not None:
            self.slide.close()
        if self._folder is not None:
            self._folder.cleanup()
        while self._files:
            os.close(self._files.pop())


def _in_memory(data: bytes) -> int:
    """A descriptor of a nameless file."""
    file = os.memfd_create("slide", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    return file


class _Grid(NamedTuple):
    level: int
    side: int
    """Pixels of that level that become a tile's."""
    step: float
    """The same in pixels of level 0."""
    mpp: float
    columns: int
    rows: int
    look: int
    """Level in which tissue is looked for."""
    look_side: int


def _grid(slide: _Slide, settings: SlideSettings, nbytes: int) -> _Grid:
    assert settings.mpp is not None
    properties, found = slide.slide.properties, slide.slide
    across, down = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    if not across or not down:
        raise Unusable("slide without a magnification: it does not say its microns per pixel, and they are not guessed")
    if abs(across / down - 1) > _SAME:
        raise Unusable(f"slide of pixels that are not square: {across:g} x {down:g} microns")
    if across > settings.mpp * (1 + _SAME):
        raise Unusable(f"slide too coarse: {across:g} microns per pixel, --mpp is {settings.mpp:g}")
    scales = found.level_downsamples
    level = max(n for n, scale in enumerate(scales) if n == 0 or across * scale <= settings.mpp * (1 + _SAME))
    ratio = settings.mpp / (across * scales[level])
    side = settings.tile if abs(ratio - 1) <= _SAME else round(settings.tile * ratio)
    width, height = found.level_dimensions[level]
    columns, rows = width // side, height // side
    if not columns or not rows:
        raise Unusable(f"slide too small: {width} x {height} pixels where a tile takes {side} x {side}")
    if columns * rows > _MOST_TILES:
        raise Unusable(f"slide too large: {columns * rows} tiles")
    if columns * rows > max(_FREE_TILES, nbytes // _BYTES_OF_TILE):
        raise Unusable(f"slide too large: {columns * rows} tiles in {nbytes} bytes")
    step = side * scales[level]
    look = max(n for n, scale in enumerate(scales) if n <= level or step / scale >= _LOOK)
    mpp = across * scales[level] * side / settings.tile
    return _Grid(level, side, step, mpp, columns, rows, look, max(1, round(step / scales[look])))


def _tiles(slide: _Slide, grid: _Grid, settings: SlideSettings) -> Iterator[Tile | Unusable]:
    damaged = 0
    try:
        for number in range(grid.columns * grid.rows):
            row, column = divmod(number, grid.columns)
            x, y = round(column * grid.step), round(row * grid.step)
            part = f"tile {x} {y}"
            try:
                pixels = slide.region(x, y, grid.look, grid.look_side)
                if _tissue(pixels) < TISSUE:
                    yield Filtered(f"background: less than {TISSUE:.0%} of the tile is tissue").at(part)
                    continue
                if grid.look != grid.level:
                    pixels = slide.region(x, y, grid.level, grid.side)
                damaged = 0
            except Unusable as unusable:
                yield unusable.at(part)
                damaged += 1
                if damaged == _IN_A_ROW:
                    yield Unusable(f"damaged slide: {damaged} tiles in a row, the rest is left out").at("the rest")
                    return
                continue
            if grid.side != settings.tile:
                size = settings.tile, settings.tile
                pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
            yield Tile(pixels, part, grid.mpp, grid.level, x, y)
    finally:
        slide.close()


def _tissue(pixels: np.ndarray) -> float:
    """Share of the pixels that show tissue."""
    value = pixels.max(axis=-1).astype(np.int32)
    spread = value - pixels.min(axis=-1)
    return float(((spread * 255 > SATURATION * value) & (value > BRIGHTNESS)).mean())


def _number(text: str | None) -> float:
    """A number above 0, or 0 for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0


def _library() -> Any:
    try:
        import openslide  # here, since few need it
    except ImportError:
        raise UserError("--mpp needs OpenSlide: pip install 'fastfgssl[wsi]'") from None
    return openslide
