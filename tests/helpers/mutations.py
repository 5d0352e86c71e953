"""Bytes that are nearly what they were."""

from __future__ import annotations

import random
import re
import struct
import zlib


def mutated(data: bytes, dice: random.Random) -> bytes:
    """With some bytes changed, a piece cut out or put in, or a number that is anything."""
    result = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 3, 20))):
        if not result:
            break
        act, at = dice.randrange(5), dice.randrange(len(result))
        if act == 0:
            result[at] ^= 1 << dice.randrange(8)
        elif act == 1:
            result[at] = dice.randrange(256)
        elif act == 2:
            result[at : at + 4] = dice.choice((b"\xff" * 4, bytes(4), b"\x80\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\1"))
        elif act == 3:
            del result[at : at + dice.choice((1, 4, 100, len(result)))]
        else:
            result[at:at] = result[dice.randrange(len(result)) :][: dice.choice((1, 4, 600))]
    return bytes(result)


def with_checksums(name: str, data: bytes) -> bytes:
    """`data` with the checksums of its format set right, so that what is behind them is reached."""
    if name == "png":
        return _png_with_checksums(data)
    if name == "tar":
        return data[:1] + _tar_with_checksums(data[1:])
    return data


def _png_with_checksums(data: bytes) -> bytes:
    result, place = bytearray(data), 8
    while place + 12 <= len(result):
        (length,) = struct.unpack_from(">I", result, place)
        if place + 12 + length > len(result):
            break
        struct.pack_into(">I", result, place + 8 + length, zlib.crc32(result[place + 4 : place + 8 + length]))
        place += 12 + length
    return bytes(result)


def _tar_with_checksums(data: bytes) -> bytes:
    result, place = bytearray(data), 0
    while place + 512 <= len(result):
        header = result[place : place + 512]
        if re.match(rb"[ -~]*\0", header[:100]) and header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            result[place + 148 : place + 156] = b"%06o\0 " % sum(header)
        place += 512
    return bytes(result)
