"""Numbers of any type as levels of 8 or 16 bits, and which of these are black and white.

A 16-bit file seldom uses 16 bits: detectors give 10 to 14. Shown over its whole range such a picture is black, so the
range belongs to the sample. It is one of a few fixed ranges, not the picture's own minimum and maximum: two slices of
one series must keep their relation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastfgssl.archive.outcome import Unusable

BITS = (8, 10, 12, 14, 15, 16)
"""What devices have. A range is the smallest of these that holds the picture."""
SIGNED_BITS = range(8, 17)
ZERO = 32768
"""The level of 0, in pictures of signed numbers: CT values of all files keep their relation."""


class Levels(NamedTuple):
    """A picture in levels."""

    pixels: np.ndarray
    """uint8 or uint16, [height, width] or [height, width, channels]."""
    range: tuple[int, int]
    """Which levels are black and white."""
    note: str = ""
    """How numbers became levels, if they were none."""


def to_levels(values: np.ndarray, *, declared_bits: int | None = None, white_is_zero: bool = False) -> Levels:
    """`values` (bool, integers or floats, of any shape) as levels.

    Unsigned numbers up to 65535 are levels already. Signed ones become value + 32768. Floats that are whole numbers
    are taken as these; others, and integers beyond 16 bits, are scaled linearly: from [0, 1] if they lie in it, else
    from minimum to maximum. `white_is_zero`: the smallest number is white. `declared_bits`: see `range_of`.
    Raises Unusable for infinite values; NaN, which marks what was not measured, becomes the minimum.
    """
    if values.dtype == bool:
        return Levels(np.where(values ^ white_is_zero, np.uint8(255), np.uint8(0)), (0, 255))
    if values.dtype == np.uint8:
        return Levels(~values if white_is_zero else values, (0, 255))
    note = ""
    if values.dtype.kind == "f":
        values, missing = _measured(values)
        note = "NaN became black; " if missing else ""
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iu" or bool((values == np.rint(values)).all())
    if whole and low >= 0 and high <= 65535:
        pixels = values.astype(np.uint16)
        black, white = range_of(int(high), declared_bits)
        return Levels(np.uint16(white) - pixels if white_is_zero else pixels, (black, white), note[:-2])
    if whole and low >= -ZERO and high < ZERO:
        signed = values.astype(np.int32)
        signed = (~signed if white_is_zero else signed) + ZERO
        half = _half_range(int(signed.min()) - ZERO, int(signed.max()) - ZERO)
        levels = (ZERO - half, ZERO + half - 1)
        return Levels(signed.astype(np.uint16), levels, f"{note}signed numbers: level = value + {ZERO}")
    kind = "floats" if values.dtype.kind == "f" else "integers beyond 16 bits"
    first, last = (0.0, 1.0) if kind == "floats" and low >= 0 and high <= 1 else (float(low), float(high))
    slope = (last - first) / 65535 or 1.0
    scaled = np.rint((values.astype(np.float64) - first) / slope).clip(0, 65535).astype(np.uint16)
    formula = f"value = {first:.6g} + {slope:.6g} x level"
    return Levels(~scaled if white_is_zero else scaled, (0, 65535), f"{note}{kind} scaled to 16 bits: {formula}")


def range_of(highest: int, declared_bits: int | None = None) -> tuple[int, int]:
    """Black and white of a 16-bit picture whose highest level is `highest`.

    `declared_bits`, what the file says of significant bits, counts unless a level is beyond: PNG's standard has
    pixels of fewer bits scaled to all 16, which many writers do not do.
    """
    if declared_bits is not None and 8 <= declared_bits <= 16 and highest < 1 << declared_bits:
        return 0, (1 << declared_bits) - 1
    if declared_bits is not None and declared_bits < 16:
        return 0, 65535
    return 0, next((1 << bits) - 1 for bits in BITS if highest < 1 << bits)


def _measured(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """Without NaN, and whether there were any."""
    missing = np.isnan(values)
    if not missing.any():
        if np.isinf(values).any():
            raise Unusable("pixels are infinite: some of its floats are no numbers")
        return values, False
    if missing.all() or np.isinf(values).any():
        raise Unusable("pixels are infinite or no numbers at all")
    return np.where(missing, values[~missing].min(), values), True


def _half_range(low: int, high: int) -> int:
    return next(1 << (bits - 1) for bits in SIGNED_BITS if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1))
