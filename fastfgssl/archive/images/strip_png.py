"""PNG files rewritten so that they hold pixels and nothing else, and proven by their own checksums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from fastfgssl.archive.images.pictures import check_size, damaged, is_srgb
from fastfgssl.archive.outcome import Unusable

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SRGB_GAMMA = 45455  # as gAMA spells 1 / 2.2
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG colour types
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class StrippedPng(NamedTuple):
    """A PNG that holds its picture and nothing else."""

    data: bytes | None
    """None if its compressed data hold more than the picture: it has to be encoded anew."""
    width: int
    height: int
    bits: int
    """Of a channel, or of a palette's index."""
    significant_bits: int | None
    """What sBIT declares, the largest of the channels."""
    profile: bool
    """Whether an ICC profile or a gamma says that its colours are not those of sRGB."""
    tagged: bool
    """Whether it had a chunk that may say that it is not upright."""
    animated: bool


def strip_png(data: bytes, max_pixels: int) -> StrippedPng:
    """The PNG `data` of IHDR, PLTE, IDAT and IEND alone; transparency goes too, because training leaves it out.

    Raises Unusable for more than `max_pixels` pixels, if the checksum of a chunk that is kept or of the compressed
    data is wrong, or if pixels are missing.
    """
    header = palette = None
    pixels: list[bytes] = []
    significant, profile, tagged, animated = None, False, False, False
    for name, body, sound in _chunks(data):
        if name in (b"IHDR", b"PLTE", b"IDAT") and not sound:
            raise _damaged(f"the checksum of a chunk {name.decode()} is wrong")
        if header is None:
            if name != b"IHDR" or len(body) != 13:
                raise _damaged("it does not begin with its header")
            header = body
            width, height = struct.unpack_from(">II", header)
            check_size(width, height, max_pixels)
        elif name == b"PLTE":
            palette = body
        elif name == b"IDAT":
            pixels.append(body)
        elif name == b"sBIT" and body and sound:
            significant = max(body)
        elif not name[0] & 32 and name != b"IEND":
            raise _damaged(f"it has a chunk {name!r}, which the standard does not know")
        profile = profile or _other_colours(name, body)
        tagged = tagged or name in (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
        animated = animated or name == b"acTL"
    if header is None:
        raise _damaged("it has no header")
    width, height, bits, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if kind not in _CHANNELS or bits not in (1, 2, 4, 8, 16) or not width or not height:
        raise _damaged("its header is wrong")
    rows = _raw_bytes(width, height, bits * _CHANNELS[kind], bool(interlaced))
    exact = _check_compressed(pixels, rows)
    stripped = None
    if exact and (palette is None or len(palette) <= 3 << bits):
        chunks = [(b"IHDR", header), (b"IDAT", b"".join(pixels)), (b"IEND", b"")]
        if kind == 3 and palette is not None:
            chunks.insert(1, (b"PLTE", palette))
        stripped = PNG_SIGNATURE + b"".join(_chunk(name, body) for name, body in chunks)
    return StrippedPng(stripped, width, height, bits, significant, profile, tagged, animated)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Name, body and whether its checksum is right, of each chunk up to the end."""
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        if place + 12 + length > len(data):
            break
        yield name, body, zlib.crc32(name + body) == struct.unpack_from(">I", data, place + 8 + length)[0]
        if name == b"IEND":
            return
        place += 12 + length
    # Without its end, or cut off within a chunk: what was there says whether the picture is whole.


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _other_colours(name: bytes, body: bytes) -> bool:
    if name == b"gAMA" and len(body) == 4:
        return abs(struct.unpack(">I", body)[0] - SRGB_GAMMA) > 500
    if name == b"iCCP":
        title, _, packed = body.partition(b"\0")
        try:
            return not is_srgb(title + zlib.decompressobj().decompress(packed[1:], 1 << 20))
        except zlib.error:
            return False
    return False


def _raw_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """How many the compressed data must hold: each row has a byte more, which names its filter."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, dx, dy in passes:
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _check_compressed(parts: list[bytes], expected: int) -> bool:
    """Whether nothing follows the picture. Raises Unusable if some of it is missing, or its checksum is wrong."""
    stream = zlib.decompressobj()
    length = 0
    tail = False
    try:
        for part in parts:
            tail = tail or (stream.eof and bool(part))
            while part and not stream.eof and length <= expected:
                length += len(stream.decompress(part, 1 << 20))
                part = stream.unconsumed_tail
        while not stream.eof and length <= expected and (more := stream.decompress(b"", 1 << 20)):
            length += len(more)
    except zlib.error as error:
        raise _damaged(f"its compressed data are damaged, {str(error).split(': ')[-1]}") from error
    if length < expected or (length == expected and not stream.eof):
        raise _damaged("it is cut off")
    return length == expected and not tail and not stream.unused_data


def _damaged(what: str) -> Unusable:
    return damaged("PNG", what)
