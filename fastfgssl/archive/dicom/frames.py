"""Where each frame of a DICOM file lies, in a value of any length that is declared."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fastfgssl.archive.dicom.header import PIXELS, UNDEFINED, DicomFile
from fastfgssl.archive.dicom.layout import Layout
from fastfgssl.archive.outcome import Unusable

MOST_FRAGMENTS = 1_000_000
# What a frame begins with: JPEG and JPEG-LS, JPEG 2000, JPEG 2000 in its file format.
BEGINNINGS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")


class Frames(NamedTuple):
    present: int
    """How many are there: fewer than declared if the file was cut short."""
    read: Callable[[int], bytes | memoryview]
    """The bytes of frame 0 to `present` - 1; of packed single bits, the bytes that hold them."""


def native_frames(file: DicomFile, layout: Layout) -> Frames:
    """Of uncompressed pixels, which lie one frame after the other."""
    if file.length == UNDEFINED:
        raise Unusable("damaged or unsupported DICOM: pixels in fragments, of a transfer syntax that has none")
    samples = layout.samples
    if layout.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        samples = 2  # colour of every second pixel
    bits = layout.pixels * samples * layout.allocated
    available = min(file.length, len(file.data) - file.start)
    data = memoryview(file.data)[file.start : file.start + available]
    if layout.allocated <= 8 and file.in_words and not file.little_endian:
        available -= available % 2
        data = memoryview(np.frombuffer(data[:available], np.uint16).byteswap().tobytes())

    def read(index: int) -> memoryview:
        return data[index * bits // 8 : -(-(index + 1) * bits // 8)]

    return Frames(min(layout.frames, available * 8 // bits), read)


def encapsulated_frames(file: DicomFile, layout: Layout) -> Frames:
    """Of compressed pixels, which lie in one fragment or more each."""
    if file.length != UNDEFINED or file.tag != PIXELS:
        raise Unusable("damaged or unsupported DICOM: compressed pixels that are not in fragments")
    starts, ends, complete = _fragments(file.data, file.start)
    if not starts:
        raise Unusable("damaged or unsupported DICOM: no pixels: cut short?")
    table = np.frombuffer(file.data, "<u4", (ends[0] - starts[0]) // 4, starts[0])
    starts, ends = starts[1:], ends[1:]
    first = _first_fragments(file, layout, table.astype(np.uint64), starts)
    if not complete and first:  # what was cut off belongs to the last frame that has begun
        first, ends, starts = first[:-1], ends[: first[-1]], starts[: first[-1]]
    bounds = [*first, len(starts)]

    def read(index: int) -> bytes:
        return b"".join(file.data[starts[i] : ends[i]] for i in range(bounds[index], bounds[index + 1]))

    return Frames(min(layout.frames, len(first)), read)


def _fragments(data: bytes, position: int) -> tuple[list[int], list[int], bool]:
    """Where items begin and end, the table of offsets first, and whether the last of them is complete."""
    starts: list[int] = []
    ends: list[int] = []
    while position + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, position)
        if (group, element) != (0xFFFE, 0xE000):
            return starts, ends, True  # the delimiter, or what some writers have instead
        if len(starts) == MOST_FRAGMENTS:
            raise Unusable(f"too large: pixels in more than {MOST_FRAGMENTS} fragments")
        position += 8
        starts.append(position)
        ends.append(min(position + length, len(data)))
        if position + length > len(data):
            return starts, ends, False
        position += length
    return starts, ends, True


def _first_fragments(file: DicomFile, layout: Layout, table: np.ndarray, starts: list[int]) -> list[int]:
    """The number of the fragment at which each frame begins."""
    if layout.frames == 1:
        return [0] if starts else []
    extended = file.header.array(0x7FE00001, "u8")
    if len(extended) == layout.frames:
        table = extended
    if len(table) == layout.frames:
        # offsets count from the first fragment's item tag
        places = {start - starts[0]: number for number, start in enumerate(starts)} if starts else {}
        numbers = [places.get(int(offset), -1) for offset in table]
        there = numbers[: numbers.index(-1)] if -1 in numbers else numbers
        if there and there[0] == 0 and all(a < b for a, b in pairwise(there)):
            return there
    if len(starts) <= layout.frames:  # one each; fewer if the file was cut short
        return list(range(len(starts)))
    begins = [n for n, start in enumerate(starts) if file.data.startswith(BEGINNINGS, start)]
    if begins[:1] == [0] and len(begins) <= layout.frames:
        return begins
    raise Unusable(f"damaged or unsupported DICOM: {len(starts)} fragments that cannot be told into frames")
