"""GIF: its first frame alone, whose size is known before anything is decoded."""

from __future__ import annotations

import struct

from fastfgssl.archive.images.pictures import check_size, damaged

_EXTENSION, _FRAME, _END = 0x21, 0x2C, b";"


def first_frame(data: bytes, max_pixels: int) -> bytes:
    """The file as far as its first frame goes: decoders that read on take memory for as much as any frame claims.

    Raises Unusable if the frame has more than `max_pixels` pixels, or if there is none.
    """
    place = 13 + _colours(data[10:11])
    while place < len(data):
        if data[place] == _EXTENSION:
            place = _behind_blocks(data, place + 2)
        elif data[place] == _FRAME and place + 10 <= len(data):
            width, height = struct.unpack_from("<2H", data, place + 5)
            check_size(width, height, max_pixels)
            return data[: _behind_blocks(data, place + 11 + _colours(data[place + 9 : place + 10]))] + _END
        else:
            break
    raise damaged("GIF", "it has no frame")


def _colours(flags: bytes) -> int:
    """Bytes of the table of colours that such flags announce."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _behind_blocks(data: bytes, place: int) -> int:
    """Where a chain of blocks ends, each of which begins with its length."""
    while place < len(data) and data[place]:
        place += 1 + data[place]
    return place + 1
