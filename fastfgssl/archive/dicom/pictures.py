"""The pictures of a DICOM file, as a radiologist would see them, or with the whole range of what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastfgssl.archive.dicom import facts as of_header
from fastfgssl.archive.dicom.classes import OF_CLASS
from fastfgssl.archive.dicom.codecs import becomes_rgb, codec, decode_compressed, decode_native
from fastfgssl.archive.dicom.colour import apply_palette, to_8_bits, to_rgb
from fastfgssl.archive.dicom.facts import Flags, Identifiers
from fastfgssl.archive.dicom.filters import HeaderFilters
from fastfgssl.archive.dicom.frames import Frames, encapsulated_frames, native_frames
from fastfgssl.archive.dicom.header import DicomFile, Header, looks_like_dicom, read_file
from fastfgssl.archive.dicom.layout import Layout, read_layout
from fastfgssl.archive.dicom.levels import show
from fastfgssl.archive.outcome import Facts, Filtered, NoImage, Unusable
from fastfgssl.runtime.errors import UserError

__all__ = ["DicomPicture", "DicomSettings", "Flags", "Identifiers", "UnusableFrame", "looks_like_dicom", "read_dicom"]

WITH_PIXELS = ("RT Dose Storage", "Segmentation Storage", "Parametric Map Storage")  # beside "... Image Storage"
SQUARE = 1.01  # up to which ratio of its sides a pixel is taken as square


@dataclass(frozen=True, kw_only=True)
class DicomSettings:
    """How pictures are made. Raises UserError for what none of it can mean."""

    frames: str = "middle"
    """Of a file with several: `middle`, `all`, or `every:N` for each Nth from the first."""
    window: str = "header"
    """`header`: the file's VOI table or first window, else the default of its modality; `C/W`: center and width in
    modality values, such as `40/400`; `percentiles`: from the 0.5th to the 99.5th of each picture."""
    depth: int = 8
    """8: the window makes black and white. 16: all that was measured, with the window told in `levels`."""
    max_pixels: int = 100_000_000
    """Of a frame."""
    max_bytes: int = 4 << 30
    """Of all frames that are taken from a file, decoded; and of a deflated file, inflated."""
    filters: HeaderFilters = field(default_factory=HeaderFilters)
    """Which images are left out, by their header."""

    def __post_init__(self) -> None:
        kind, _, step = self.frames.partition(":")
        if self.frames not in ("middle", "all") and not (kind == "every" and re.fullmatch(r"[1-9]\d{0,8}", step)):
            raise UserError(f"frames: {self.frames!r} is not middle, all or every:N")
        if self.window not in ("header", "percentiles"):
            center, _, width = self.window.partition("/")
            try:
                fine = np.isfinite(float(center)) and 1 <= float(width) < np.inf
            except ValueError:
                fine = False
            if not fine:
                raise UserError(f"window: {self.window!r} is not header, percentiles, or CENTER/WIDTH such as 40/400")
        if self.depth not in (8, 16):
            raise UserError(f"depth: {self.depth} is neither 8 nor 16")


class DicomPicture(NamedTuple):
    picture: Image.Image
    """In mode L, RGB or I;16, with square pixels and nothing but them."""
    part: str
    """`frame 12`, counted from 1; empty if the file has only one."""
    levels: tuple[int, int]
    """Which levels are black and white."""
    facts: Facts
    notes: tuple[str, ...]
    identifiers: Identifiers
    flags: Flags


class UnusableFrame(Unusable):
    """A frame that cannot go into the archive, beside others that can."""

    def __init__(self, reason: str, part: str = "") -> None:
        super().__init__(reason)
        self.part = part


def read_dicom(data: bytes, settings: DicomSettings) -> Iterator[DicomPicture | Unusable]:
    """The pictures of a file's bytes, decoded one by one as they are asked for.

    A frame that is damaged, constant or not supported gives an UnusableFrame in its place, one that `settings.filters`
    leave out a Filtered; a file that is unusable, one Unusable alone. Of frames that were cut off, the first stands for
    all.
    Raises NoImage, before anything is decoded, for a file that rightly holds no image, such as a report.
    """
    try:
        file = read_file(data, settings.max_bytes)
        if not file.tag:
            raise _without_pixels(file)
        layout = read_layout(file, settings.max_pixels)
        name = codec(file.syntax)
        frames = encapsulated_frames(file, layout) if name else native_frames(file, layout)
        numbers = _chosen(layout, frames, settings)
    except Unusable as reason:
        return iter([reason])
    except MemoryError:
        return iter([Unusable("out of memory: while reading a DICOM header")])
    return _pictures(file, layout, name, frames, numbers, settings)


def _without_pixels(file: DicomFile) -> Exception:
    if 0x00280010 in file.header or file.kind.endswith("Image Storage") or file.kind in WITH_PIXELS:
        return Unusable("damaged or unsupported DICOM: an image without pixels: cut short?")
    if 0x00041220 in file.header:
        return NoImage(f"{OF_CLASS}: Media Storage Directory Storage")
    if not file.kind:
        return Unusable("damaged or unsupported DICOM: neither pixels nor a class of object: cut short?")
    return NoImage(f"{OF_CLASS}: {file.kind}")


def _chosen(layout: Layout, frames: Frames, settings: DicomSettings) -> range:
    """Numbers of the frames to take; may go beyond those that are there."""
    kind, _, step = settings.frames.partition(":")
    if kind == "middle":
        numbers = range(layout.frames // 2, layout.frames // 2 + 1)
    else:
        numbers = range(0, layout.frames, int(step or 1))
    taken = len(range(numbers.start, min(numbers.stop, frames.present), numbers.step))
    size = layout.pixels * layout.samples * (layout.allocated + 7 >> 3) * taken
    if size > settings.max_bytes:
        raise Unusable(
            f"too large: {taken} frames of {layout.columns} x {layout.rows} pixels are {size} bytes, "
            f"at most {settings.max_bytes} are taken"
        )
    return numbers


def _pictures(
    file: DicomFile, layout: Layout, name: str, frames: Frames, numbers: range, settings: DicomSettings
) -> Iterator[DicomPicture | Unusable]:
    for number in numbers:
        part = f"frame {number + 1}" if layout.frames > 1 else ""
        if number >= frames.present:
            reason = f"damaged or unsupported DICOM: cut short: {frames.present} of {layout.frames} frames"
            yield UnusableFrame(reason, part)
            return
        try:
            yield _picture(file, layout, name, frames, number, part, settings)
        except Filtered as filtered:
            yield filtered.at(part)
        except Unusable as unusable:
            yield UnusableFrame(str(unusable), part)
        except MemoryError:
            yield UnusableFrame(f"out of memory: {layout.columns} x {layout.rows} pixels", part)


def _picture(
    file: DicomFile, layout: Layout, name: str, frames: Frames, number: int, part: str, settings: DicomSettings
) -> DicomPicture:
    header = _header_of_frame(file.header, number)
    flags = of_header.flags(file, header)
    settings.filters.check(of_header.modality(header), flags)
    data = frames.read(number)
    if name:
        values = decode_compressed(bytes(data), layout, name)
    else:
        values = decode_native(data, layout, number, little_endian=file.little_endian)

    notes = []
    levels = (0, 255)
    if layout.photometric.startswith("MONOCHROME"):
        with np.errstate(all="ignore"):  # of floats that are none and windows beyond all numbers
            modality = of_header.modality(header) or ""
            gray = show(values, header, layout, modality=modality, window=settings.window, depth=settings.depth)
        pixels, levels = gray.pixels, gray.levels
    else:
        if layout.photometric == "PALETTE COLOR":
            pixels = apply_palette(values, header, layout)
        else:
            pixels = to_8_bits(values, layout.stored)
            if layout.stored > 8:
                notes.append("16-bit colour became 8-bit")
            if layout.photometric.startswith("YBR") and not (name and becomes_rgb(name, bytes(data), layout)):
                pixels = to_rgb(pixels, layout.photometric)
        if all((row == pixels[0, 0]).all() for row in pixels):
            raise Unusable("constant: all pixels are alike")
    picture = Image.fromarray(np.ascontiguousarray(pixels))

    spacing = of_header.spacing(header)
    height = of_header.pixel_height(header)
    if max(height, 1 / height) > SQUARE:
        picture = _square(picture, height, settings.max_pixels)
        notes.append("pixels made square")
        if spacing:
            spacing = min(spacing), min(spacing)
    return DicomPicture(
        picture,
        part,
        levels,
        of_header.facts(header, layout, spacing),
        tuple(notes),
        of_header.identifiers(header),
        flags,
    )


def _header_of_frame(header: Header, number: int) -> Header:
    """What an enhanced object says of this frame and of all (PS3.3 C.7.6.16) before what the file says."""
    items = []
    for groups in (header.items(0x52009230)[number : number + 1], header.items(0x52009229)[:1]):
        for group in groups:
            # spacing, window, modality values; the type of a frame of MR, CT, 3D X-ray, PET, OCT in vessels
            for tag in (0x00289110, 0x00289132, 0x00289145, 0x00189226, 0x00189329, 0x00189504, 0x00189751, 0x00520025):
                items += Header(group).items(tag)[:1]
    return header.within(items) if items else header


def _square(picture: Image.Image, height: float, max_pixels: int) -> Image.Image:
    """Pixels of `height` for a width of 1 made square along the side that has fewer: nothing that is seen is lost."""
    rows, columns = picture.height * max(1.0, height), picture.width * max(1.0, 1 / height)
    if not rows * columns <= max_pixels:
        raise Unusable(f"too large: pixels of {height:g} to 1 made square, --max-pixels is {max_pixels}")
    size = round(columns), round(rows)
    if picture.mode != "I;16":
        return picture.resize(size, Image.Resampling.BICUBIC)
    floats = Image.fromarray(np.asarray(picture, dtype=np.float32)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(np.rint(np.asarray(floats)).clip(0, 65535).astype(np.uint16))
