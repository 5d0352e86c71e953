"""The size that a JPEG XL file claims, read before any of it is decoded (ISO/IEC 18181-1, annex D)."""

from __future__ import annotations

import struct

from fastfgssl.archive.images.pictures import damaged

_BITS = (9, 13, 18, 30)
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


def jpeg_xl_size(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG XL codestream, bare or in its container. Raises Unusable if there is none."""
    header = _codestream(data)[:16]
    if header[:2] != b"\xff\x0a":
        raise damaged("JPEG XL", "it has no codestream")
    bits = int.from_bytes(header[2:], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(small: int) -> int:
        return 8 * (1 + take(5)) if small else 1 + take(_BITS[take(2)])

    small = take(1)
    height = side(small)
    ratio = take(3)
    if not ratio:
        return side(small), height
    numerator, denominator = _RATIOS[ratio]
    return height * numerator // denominator, height


def _codestream(data: bytes) -> bytes:
    if data.startswith(b"\xff\x0a"):
        return data
    place = 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        start = 8
        if length == 1 and place + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, place + 8)
            start = 16
        if kind in (b"jxlc", b"jxlp"):
            place += start + (4 if kind == b"jxlp" else 0)
            return data[place : place + 16]
        if length < start:
            break
        place += length
    return b""
