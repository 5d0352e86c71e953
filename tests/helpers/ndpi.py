"""NDPI as Hamamatsu's scanners write it, as far as OpenSlide looks: a JPEG for each level, in directories of a TIFF."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

_SHORT, _LONG, _RATIONAL, _SIGNED, _FLOAT = 3, 4, 5, 9, 11  # types of TIFF
_FORMAT, _LENS, _FOCAL_PLANE = 65420, 65421, 65424


def ndpi_slide(pixels: np.ndarray, *, mpp: float, power: float = 20.0, levels: int = 2) -> bytes:
    """A slide of `pixels`, uint8 [H, W, 3], each level of half the size of the one before."""
    out = bytearray(b"II*\0" + bytes(8))
    link = 4  # where the place of the next directory stands
    for level in range(levels):
        shown = np.ascontiguousarray(pixels[:: 1 << level, :: 1 << level])
        encoded = io.BytesIO()
        Image.fromarray(shown).save(encoded, "JPEG", quality=90, subsampling="4:2:2", restart_marker_blocks=4)
        start = len(out)
        out += encoded.getvalue() + bytes(encoded.tell() % 2)
        dots, bits = len(out), len(out) + 8
        out += struct.pack("<2I3H2x", round(1e4 / (mpp * (1 << level))), 1, 8, 8, 8)  # to a centimetre
        (lens,) = struct.unpack("<I", struct.pack("<f", power / (1 << level)))
        height, width = shown.shape[:2]
        tags = [
            (256, _LONG, 1, width),
            (257, _LONG, 1, height),
            (258, _SHORT, 3, bits),
            (259, _SHORT, 1, 7),  # JPEG
            (262, _SHORT, 1, 6),  # YCbCr
            (273, _LONG, 1, start),
            (277, _SHORT, 1, 3),
            (278, _LONG, 1, height),
            (279, _LONG, 1, encoded.tell()),
            (282, _RATIONAL, 1, dots),
            (283, _RATIONAL, 1, dots),
            (296, _SHORT, 1, 3),
            (_FORMAT, _LONG, 1, 1),
            (_LENS, _FLOAT, 1, lens),
            (_FOCAL_PLANE, _SIGNED, 1, 0),
        ]
        struct.pack_into("<I", out, link, len(out))
        out += struct.pack("<H", len(tags)) + b"".join(struct.pack("<2H2I", *tag) for tag in tags)
        link = len(out)
        out += bytes(8 + 4 * len(tags))  # places are of 8 bytes: behind them, the upper halves of the values
    return bytes(out)
