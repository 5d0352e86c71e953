"""What must hold of bytes that strangers wrote, a function a parser: each ends, or raises what breaks the promise.

A reader may refuse with the errors that it documents, and with none other. What it accepts, another reader accepts too,
and shows the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fastfgssl.archive.dicom.pictures import DicomSettings, read_dicom
from fastfgssl.archive.images.formats import identify, read_pictures
from fastfgssl.archive.images.jpeg import read_jpeg
from fastfgssl.archive.images.pictures import Picture, same_picture
from fastfgssl.archive.images.png import read_png
from fastfgssl.archive.images.slides import SlideSettings, Tile, slide_tiles
from fastfgssl.archive.images.strip_jpeg import strip_jpeg
from fastfgssl.archive.images.strip_png import strip_png
from fastfgssl.archive.labels.table import Table, is_empty, read_cells, read_columns
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.outcome import NoImage, Unusable
from fastfgssl.runtime.errors import UserError
from helpers import hostile_seeds as seeds
from helpers.hostile_containers import gzips, tars, zips
from helpers.in_memory import file_in_memory
from helpers.promises import require

MAX_PIXELS = 1 << 20


class Target(NamedTuple):
    """A parser that is tried."""

    check: Callable[[bytes], bool]
    """Of any bytes; whether they were accepted."""
    seeds: Callable[[], list[bytes]]
    suffixes: tuple[str, ...] = ()
    """Of files that are seeds too."""


def jpeg(data: bytes) -> bool:
    try:
        found = read_jpeg(data, MAX_PIXELS)
    except Unusable:
        return False
    _check_picture(found.picture)
    if found.data is None:
        return True
    _check_stripped(strip_jpeg(found.data), found.data)
    if found.plain and not found.picture.turned:
        image = Image.open(io.BytesIO(found.data), formats=("JPEG",))
        require(same_picture(np.asarray(image), found.picture.pixels), "Pillow shows the same JPEG")
    return True


def png(data: bytes) -> bool:
    try:
        found = read_png(data, MAX_PIXELS)
    except Unusable:
        return False
    _check_picture(found.picture)
    if found.data is not None:
        _check_stripped(strip_png(found.data, MAX_PIXELS), found.data)
        image = Image.open(io.BytesIO(found.data), formats=("PNG",))
        image.load()
        shape = found.picture.pixels.shape[:2]
        require(image.size in (shape, shape[::-1]), "Pillow reads a picture of that size")
    return True


def pictures(data: bytes) -> bool:
    """Every format that an archive encodes anew."""
    try:
        format = identify(data)
        if format in ("JPEG", "PNG"):
            return False
        found = list(read_pictures(data, format, MAX_PIXELS, every_page=True))
    except Unusable:
        return False
    for picture in found:
        if not isinstance(picture, Unusable):
            _check_picture(picture)
    return any(not isinstance(picture, Unusable) for picture in found)


def dicom(data: bytes) -> bool:
    """The first byte chooses how."""
    choice, data = data[0] if data else 0, data[1:]
    settings = DicomSettings(
        frames=("middle", "all", "every:3")[choice % 3],
        window=("header", "percentiles", "40/400")[choice // 3 % 3],
        depth=(8, 16)[choice // 9 % 2],
        max_pixels=MAX_PIXELS,
        max_bytes=1 << 25,
    )
    accepted = False
    try:
        for found in read_dicom(data, settings):
            if isinstance(found, Unusable):
                continue
            accepted = True
            low, high = found.levels
            pixels = np.asarray(found.picture)
            require(found.picture.mode in ("L", "RGB", "I;16") and 0 <= low < high <= 65535, "a picture and its levels")
            require(pixels.size <= 3 * MAX_PIXELS, "no more pixels than are allowed")
    except NoImage:
        pass
    return accepted


def slides(data: bytes) -> bool:
    try:
        found = list(slide_tiles(data, SlideSettings(mpp=0.5, tile=32)) or ())
    except Unusable:
        return False
    tiles = [tile for tile in found if isinstance(tile, Tile)]
    require(all(tile.pixels.shape == (32, 32, 3) for tile in tiles), "tiles of one size")
    return bool(tiles)


def csvs(data: bytes) -> bool:
    """A table, read by columns and by rows, which have to tell the same."""
    with file_in_memory("labels.csv", data) as table:
        try:
            by_columns = _texts(read_columns(table, "image", ("label",), ("group",)))
        except UserError as error:
            _check_message(error)
            by_columns = None
        try:
            header, *rows = [cells for _, cells in read_cells(table, ("image", "label"), ("group",))]
            found = [name for name in ("image", "label", "group") if name in header]
            by_rows = [tuple(row[header.index(name)] for name in found) for row in rows]
        except UserError as error:
            _check_message(error)
            by_rows = None
    require((by_rows is None) == (by_columns is None), "a table that is read by rows is read by columns")
    if by_rows is not None and by_columns is not None:
        said = [(row[0], *("" if is_empty(cell) else cell for cell in row[1:])) for row in by_rows]
        require(by_columns == said, "rows and columns tell the same")
    return by_rows is not None


def workbooks(data: bytes) -> bool:
    with file_in_memory("labels.xlsx", data) as table:
        try:
            rows = list(read_cells(table, ("image", "label")))
        except UserError as error:
            _check_message(error)
            return False
    return len(rows) > 1


def manifests(data: bytes) -> bool:
    """A manifest of another's archive, whose table is there."""
    folder = seeds.archive_of(manifest=data)
    try:
        archive = Archive.open(folder, max_bad_share=1.0)
        ids = np.arange(min(archive.num_samples, 8))
        archive.columns(ids, ("id", "shard", "offset", "size", "width"))
    except UserError as error:
        _check_message(error)
        return False
    return True


def tables(data: bytes) -> bool:
    """The table of another's archive."""
    folder = seeds.archive_of(table=data)
    try:
        archive = Archive.open(folder, max_bad_share=1.0, check_table=False)
        ids = np.arange(min(archive.num_samples, 8))
        columns = archive.columns(ids, ("id", "shard", "offset", "size", "width", "low", "high"))
        ends = columns["offset"].astype(object) + columns["size"]
        require(max(ends, default=0) <= archive.shard_bytes.max(), "samples lie within their shards")
    except UserError as error:
        _check_message(error)
        return False
    return True


TARGETS = {
    "jpeg": Target(jpeg, seeds.jpegs, (".jpg", ".jpeg")),
    "png": Target(png, seeds.pngs, (".png",)),
    "tiff": Target(pictures, seeds.tiffs, (".tif", ".tiff")),
    "webp": Target(pictures, partial(seeds.by_pillow, "WEBP"), (".webp",)),
    "gif": Target(pictures, partial(seeds.by_pillow, "GIF"), (".gif",)),
    "bmp": Target(pictures, partial(seeds.by_pillow, "BMP"), (".bmp",)),
    "avif": Target(pictures, partial(seeds.by_pillow, "AVIF"), (".avif",)),
    "heic": Target(pictures, seeds.heics, (".heic",)),
    "jpeg2000": Target(pictures, seeds.jpegs_2000, (".jp2", ".j2k")),
    "jpegls": Target(pictures, seeds.jpegs_ls, (".jls",)),
    "jpegxl": Target(pictures, seeds.jpegs_xl, (".jxl",)),
    "dicom": Target(dicom, seeds.dicoms, (".dcm",)),
    "slide": Target(slides, seeds.slides, (".svs", ".ndpi")),
    "zip": Target(zips, seeds.zips, (".zip",)),
    "tar": Target(tars, seeds.tars, (".tar",)),
    "gzip": Target(gzips, seeds.gzips, (".gz", ".tgz")),
    "csv": Target(csvs, seeds.csvs, (".csv",)),
    "xlsx": Target(workbooks, seeds.workbooks, (".xlsx",)),
    "manifest": Target(manifests, seeds.manifests),
    "table": Target(tables, seeds.tables),
}


def _check_picture(picture: Picture) -> None:
    pixels, (low, high) = picture.pixels, picture.levels
    shape = pixels.shape
    require(pixels.dtype in (np.uint8, np.uint16), "levels of 8 or 16 bits")
    require(len(shape) == 2 or (len(shape) == 3 and shape[2] == 3), "gray or colour")
    require(0 < shape[0] * shape[1] <= MAX_PIXELS, "no more pixels than are allowed")
    require(0 <= low < high <= 65535, "levels that are black and white")


def _check_stripped(again: Any, data: bytes) -> None:
    require(again.data == data, "what is stripped stays what it is when it is stripped again")
    require(not again.tagged and not again.profile, "nothing but pixels is left")


def _check_message(error: UserError) -> None:
    require("\n" not in str(error) and len(str(error)) < 2000, "a refusal is one line")


def _texts(table: Table) -> list[tuple[str, ...]]:
    columns = [
        ["" if code < 0 else column.words[code] for code in column.code.tolist()] for column in table.columns.values()
    ]
    return list(zip(table.image.to_pylist(), *columns, strict=True))
