"""JPEG files rewritten so that they hold pixels and nothing else, without decoding them.

A shard must not tell who is on a picture. JPEG and PNG are the formats that can be kept as they are: each is taken
apart and put together again of those parts alone that decoding needs. All other formats are encoded anew, because
their layouts leave room for bytes that nobody reads.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import NamedTuple

from fastfgssl.archive.images.pictures import damaged, is_srgb
from fastfgssl.archive.outcome import Unusable

SOI, EOI, SOS, DQT, DHT, DAC, DRI, APP0, APP1, APP2, APP14 = (
    0xD8,
    0xD9,
    0xDA,
    0xDB,
    0xC4,
    0xCC,
    0xDD,
    0xE0,
    0xE1,
    0xE2,
    0xEE,
)
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA})  # baseline, extended, progressive, lossless, arithmetic
PROGRESSIVE = frozenset({0xC2, 0xCA})
LOSSLESS = 0xC3
_UNSUPPORTED = frozenset({*range(0xC0, 0xD0), 0xDC, 0xDE, 0xDF}) - FRAMES - {DHT, DAC}
MAX_SCANS = 100  # encoders write 10 or so; decoding takes time in proportion, and hundreds take minutes
_JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"  # no density, no thumbnail
_ADOBE = b"Adobe\0\x64\0\0\0\0"  # then the byte that names the colour transform
_MARKER = re.compile(rb"\xff+([\x01-\xfe])")
# within entropy-coded data: not a stuffed 0xff, and no restart; it begins with one byte, so that memchr finds it
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xff]")
_FILL = re.compile(rb"\xff+")


class Component(NamedTuple):
    """A colour channel, as a JPEG's frame header declares it."""

    id: int
    sampling: int
    table: int


class StrippedJpeg(NamedTuple):
    """A JPEG that holds its picture and nothing else."""

    data: bytes
    frame: int
    """The marker of its frame header, one of `FRAMES`."""
    precision: int
    """Bits a channel."""
    width: int
    height: int
    components: tuple[Component, ...]
    adobe: int | None
    """Adobe's colour transform, where it is declared."""
    jfif: bool
    tagged: bool
    """Whether it had an EXIF or XMP block, which may say that it is not upright."""
    profile: bool
    """Whether it had an ICC profile that is not sRGB."""

    @property
    def plain(self) -> bool:
        """Whether every libjpeg decodes it to the same pixels: gray or YCbCr of 8 bits, Huffman-coded DCT."""
        if self.frame not in (0xC0, 0xC1, 0xC2) or self.precision != 8:
            return False
        sampling = [component.sampling for component in self.components]
        if len(sampling) == 1:
            return sampling == [0x11]
        ycbcr = self.adobe == 1 if self.adobe is not None else self.jfif or [c.id for c in self.components] == [1, 2, 3]
        return len(sampling) == 3 and ycbcr and sampling[0] in (0x11, 0x21, 0x12, 0x22) and sampling[1:] == [0x11] * 2


class _Segment(NamedTuple):
    marker: int
    body: bytes
    scan: bytes = b""
    """The entropy-coded data after it."""


def strip_jpeg(data: bytes) -> StrippedJpeg:
    """The JPEG `data` of tables, frame header, scans and the two markers that name its colour space.

    Left out are EXIF with its thumbnail, XMP, IPTC, ICC, comments, MPF's further pictures, tables that no scan uses or
    others replace, bytes between segments and after the end, fill bytes; all that is kept has its canonical length.
    Whether the scans are whole is for a strict decoder to say.
    Raises Unusable if the structure is damaged or has no end, if scans are missing or above `MAX_SCANS`.
    """
    segments = _segments(data)
    frames = [segment for segment in segments if segment.marker in FRAMES]
    scans = [segment for segment in segments if segment.marker == SOS]
    if len(frames) != 1 or not scans:
        raise _damaged(f"it has {len(frames)} frame headers and {len(scans)} scans")
    if len(scans) > MAX_SCANS:
        raise Unusable(f"too many scans: {len(scans)} in a JPEG, which would take minutes to decode")
    frame = frames[0]
    precision, height, width, count = struct.unpack_from(">BHHB", frame.body.ljust(6, b"\0"))
    if not count or not width or not height or len(frame.body) < 6 + 3 * count:
        raise _damaged("its frame header is incomplete")
    components = tuple(Component(*frame.body[place : place + 3]) for place in range(6, 6 + 3 * count, 3))
    _check_complete(frame.marker, components, scans)

    wanted = {
        DQT: frozenset(component.table for component in components),
        DHT: frozenset(table for scan in scans for table in _entropy_tables(scan)),
    }
    replaced = _replaced(segments)
    parts = [b"\xff\xd8"]
    adobe, jfif = None, False
    for marker, body, _ in segments:
        if marker == APP0 and body.startswith(b"JFIF\0"):
            jfif = True
        elif marker == APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
    if jfif:
        parts.append(_segment(APP0, _JFIF))
    if adobe is not None:
        parts.append(_segment(APP14, _ADOBE + bytes([adobe])))
    for number, (marker, body, scan) in enumerate(segments):
        if marker in wanted:
            tables = _tables(marker, body).items()
            body = b"".join(table for which, table in tables if which in wanted[marker] - replaced[number])
        elif marker == DRI:
            body = body[:2]
        elif marker == SOS:
            body = body[: 4 + 2 * body[0]]
        elif marker == frame.marker:
            body = body[: 6 + 3 * count]
        elif marker != DAC:
            continue
        if body:
            parts += (_segment(marker, body), scan)
    parts.append(b"\xff\xd9")
    return StrippedJpeg(
        b"".join(parts),
        frame.marker,
        precision,
        width,
        height,
        components,
        adobe,
        jfif,
        tagged=any(segment.marker == APP1 for segment in segments),
        profile=_has_profile(b"".join(segment.body for segment in segments if segment.marker == APP2)),
    )


def jpeg_frame(data: bytes) -> int | None:
    """The marker of the first frame header, also of processes that `strip_jpeg` does not know, such as JPEG-LS."""
    place = 2
    while found := _MARKER.search(data, place):
        marker, place = found[1][0], found.end()
        if (0xC0 <= marker <= 0xCF and marker not in (DHT, DAC, 0xC8)) or marker == 0xF7:
            return marker
        if 0xD0 <= marker <= 0xD9 or marker == 1:
            continue
        if marker == SOS or place + 2 > len(data):
            return None
        place += struct.unpack_from(">H", data, place)[0]
    return None


def _segments(data: bytes) -> list[_Segment]:
    segments: list[_Segment] = []
    place = 2
    while found := _MARKER.search(data, place):
        marker, place = found[1][0], found.end()
        if marker == EOI:
            return segments
        if marker == SOI:
            raise _damaged("a second picture begins inside it")
        if 0xD0 <= marker <= 0xD7 or marker == 1:  # these stand alone
            continue
        length = struct.unpack_from(">H", data, place)[0] if place + 2 <= len(data) else 0
        if length < 2 or place + length > len(data):
            raise _damaged("a segment is cut off")
        if marker in _UNSUPPORTED:
            raise _damaged(f"its marker 0x{marker:02x} is not supported")
        body = data[place + 2 : place + length]
        place += length
        scan = b""
        if marker == SOS:
            end = _end_of_scan(data, place)
            scan, place = data[place:end], end
            if not body or len(body) < 4 + 2 * body[0]:
                raise _damaged("a scan header is cut off")
        segments.append(_Segment(marker, body, scan))
    raise _damaged("its end is missing")


def _end_of_scan(data: bytes, place: int) -> int:
    """Where the next marker begins, fill bytes included, or the end of `data`."""
    while found := _AFTER_SCAN.search(data, place):
        place = _FILL.match(data, found.start()).end()  # type: ignore[union-attr]  # at least the 0xff is there
        if place < len(data) and not (data[place] == 0 or 0xD0 <= data[place] <= 0xD7):
            return found.start()
    return len(data)


def _has_profile(body: bytes) -> bool:
    return b"ICC_PROFILE\0" in body and not is_srgb(body)


def _check_complete(frame: int, components: tuple[Component, ...], scans: list[_Segment]) -> None:
    """Raises Unusable if a coefficient of a component is in no scan, or not with its last bit.

    Decoders make a blurred picture of such a file without a word.
    """
    missing = {component.id: set(range(64 if frame in PROGRESSIVE else 1)) for component in components}
    for scan in scans:
        count = scan.body[0]
        first, last, bits = scan.body[1 + 2 * count : 4 + 2 * count]
        for place in range(1, 1 + 2 * count, 2):
            if frame not in PROGRESSIVE:
                missing.get(scan.body[place], set()).clear()
            elif not bits & 15:
                missing.get(scan.body[place], set()).difference_update(range(first, last + 1))
    if any(missing.values()):
        raise _damaged("some of its scans are missing")


def _replaced(segments: list[_Segment]) -> list[set[int]]:
    """Of each segment the numbers of its tables that another replaces before a scan uses them, or that none does."""
    later: dict[int, set[int]] = {DQT: set(range(256)), DHT: set(range(256))}  # behind the last scan
    found = []
    for marker, body, _ in reversed(segments):
        if marker == SOS:
            later = {DQT: set(), DHT: set()}
        found.append(set(later.get(marker, ())))
        if marker in later:
            later[marker] |= _tables(marker, body).keys()
    return found[::-1]


def _entropy_tables(scan: _Segment) -> set[int]:
    """Those that it uses, as a Huffman table spells class and number."""
    chosen = scan.body[2 : 1 + 2 * scan.body[0] : 2]
    return {pair >> 4 for pair in chosen} | {0x10 | pair & 15 for pair in chosen}


@lru_cache(maxsize=256)  # a device writes the same tables into each of its files
def _tables(marker: int, body: bytes) -> dict[int, bytes]:
    """Of a segment of quantisation or Huffman tables, each by its number; of two with one number, the second."""
    found: dict[int, bytes] = {}
    place = 0
    while place < len(body):
        if marker == DQT:
            number, size = body[place] & 15, 129 if body[place] >> 4 else 65
        else:
            number, size = body[place], 17 + sum(body[place + 1 : place + 17])
        if place + size > len(body):
            raise _damaged("a table is cut off")
        found[number] = body[place : place + size]
        place += size
    return found


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _damaged(what: str) -> Unusable:
    return damaged("JPEG", what)
