"""Stored values as the levels of gray that a radiologist would see: modality values, window, padding, inversion.

What is done is worked out once for each value that can occur and looked up for each pixel; only floats and integers
of 32 bits that spread far are computed pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastfgssl.archive.dicom.header import Header
from fastfgssl.archive.dicom.layout import Layout
from fastfgssl.archive.outcome import Unusable

SOFT_TISSUE = (40.0, 400.0)  # Hounsfield units; the window of a CT that brings none
PERCENTILES = (0.5, 99.5)
WHITE = 65535
FINEST_WINDOW = 4096
SPREAD = 1 << 16  # values that a table is made for

Curve = Callable[[np.ndarray], np.ndarray]


class Window(NamedTuple):
    """Modality values that become black and white, or a curve that cannot be told by two numbers."""

    low: float
    high: float
    curve: Curve | None = None
    """Of modality values, to 0 (black) to 1 (white)."""

    def shown(self, values: np.ndarray) -> np.ndarray:
        """0 to 1."""
        if self.curve is not None:
            return self.curve(values)
        if self.high <= self.low:  # a window of one value is a threshold
            return (values > self.low).astype(np.float64)
        return ((values - self.low) / (self.high - self.low)).clip(0, 1)


class Gray(NamedTuple):
    pixels: np.ndarray
    """uint8 or uint16 [rows, columns]."""
    levels: tuple[int, int]
    """Which of them are black and white."""


def show(stored: np.ndarray, header: Header, layout: Layout, *, modality: str, window: str, depth: int) -> Gray:
    """The picture of `stored` [rows, columns] of MONOCHROME1 or 2, as `DicomSettings` describes it.

    Raises Unusable for a constant picture.
    """
    low, high = stored.min(), stored.max()
    values, index = stored, None
    if stored.dtype.kind in "iu" and int(high) - int(low) < SPREAD:
        # unsigned values index a table as they are; of others the differences do, which wrap around to what they are
        first = 0 if stored.dtype.kind == "u" and high < SPREAD else int(low)
        unsigned = np.dtype(f"u{stored.dtype.itemsize}")
        index = stored.view(unsigned) - np.array(first).astype(unsigned) if first else stored
        values = np.arange(first, int(high) + 1)

    padding = padded(values, header, layout)
    present: np.ndarray = ~padding & (values >= low) if index is not None else ~padding
    if index is not None and padding.any():
        present &= _counts(index, len(values)) > 0
    seen = values[present]
    if not seen.size or seen.min() == seen.max():
        raise Unusable("constant: all pixels but padding are alike")

    modality_of = modality_values(header, layout)
    shown_values = modality_of(values)

    def percentiles() -> Window:
        weights = None if index is None else _counts(index, len(values))
        return Window(*_percentiles(shown_values[~padding], None if weights is None else weights[~padding]))

    chosen = _choose(header, layout, window, modality) or percentiles()
    if depth == 8 or chosen.curve is not None:
        white = 255 if depth == 8 else WHITE
        levels = (0, white)
        result = np.floor(chosen.shown(shown_values) * white + 0.5)
        if layout.photometric == "MONOCHROME1":
            result = white - result
    else:
        ends = shown_values[present]
        if index is not None:
            ends = modality_of(np.array(_stored_range(layout, seen), dtype=np.float64))
        result, (black, white), top = _whole_range(
            shown_values, shown_values[present], ends, chosen, _unit(header, layout)
        )
        if layout.photometric == "MONOCHROME1":
            result, (black, white) = top - result, (top - white, top - black)
        levels = (black, white)
    result[padding] = 0
    result = result.astype(np.uint8 if depth == 8 else np.uint16)
    visible = result[present].clip(*levels)
    if visible.min() == visible.max():
        raise Unusable(f"constant: the window from {chosen.low:g} to {chosen.high:g} shows nothing of it")
    return Gray(result if index is None else _looked_up(result, index), levels)


def _counts(index: np.ndarray, size: int) -> np.ndarray:
    """How often 0 to `size` - 1 occur."""
    counts = np.zeros(size, np.int64)
    for rows in _strips(index):
        counts += np.bincount(rows.ravel(), minlength=size)
    return counts


def _looked_up(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    picture = np.empty(index.shape, table.dtype)
    for into, rows in zip(_strips(picture), _strips(index), strict=True):
        np.take(table, rows, out=into, mode="clip")  # no index lies outside; this mode needs no buffer for `out`
    return picture


def _strips(picture: np.ndarray) -> list[np.ndarray]:
    """Of rows, with about 65,536 pixels: numpy makes indices eight bytes wide first."""
    rows = max(1, (1 << 16) // picture.shape[1])
    return [picture[start : start + rows] for start in range(0, len(picture), rows)]


def padded(values: np.ndarray, header: Header, layout: Layout) -> np.ndarray:
    """Which stored values mean no picture: the padding value or range (PS3.3 C.7.5.1.1.2); of floats NaN as well."""
    if layout.is_float:
        code = "f" if layout.allocated == 32 else "d"
        tags = (0x00280122, 0x00280124) if layout.allocated == 32 else (0x00280123, 0x00280125)
        bounds = [header.words(tag, code=code)[:1] for tag in tags]
    else:
        bounds = [header.words(tag, signed=layout.signed)[:1] for tag in (0x00280120, 0x00280121)]
    outside = ~np.isfinite(values) if layout.is_float else np.zeros(values.shape, bool)
    if bounds[0]:
        ends = bounds[0][0], bounds[1][0] if bounds[1] else bounds[0][0]
        outside |= (values >= min(ends)) & (values <= max(ends))
    return outside


def modality_values(header: Header, layout: Layout) -> Curve:
    """Stored values to what was measured, such as Hounsfield units, by the file's table or line."""
    tables = [_table(Header(item), layout.signed) for item in header.items(0x00283000)[:1]]
    if tables and tables[0] is not None:
        first, entries, _ = tables[0]
        return lambda values: _look_up(values, first, entries).astype(np.float64)
    slope, intercept = _line(header)
    return lambda values: values * slope + intercept


def _line(header: Header) -> tuple[float, float]:
    slope, intercept = header.decimals(0x00281053)[:1], header.decimals(0x00281052)[:1]
    return (slope[0] if slope and slope[0] else 1.0), (intercept[0] if intercept else 0.0)


def _unit(header: Header, layout: Layout) -> float:
    """The smallest difference of modality values; 0 of floats."""
    if layout.is_float:
        return 0.0
    return 1.0 if header.items(0x00283000) else abs(_line(header)[0])


def _choose(header: Header, layout: Layout, window: str, modality: str) -> Window | None:
    """None for percentiles."""
    if window == "percentiles":
        return None
    if window != "header":
        center, width = (float(part) for part in window.split("/"))
        return _linear(center, width)
    tables = [_table(Header(item), layout.signed or _line(header)[1] < 0) for item in header.items(0x00283010)[:1]]
    if tables and tables[0] is not None:
        first, entries, white = tables[0]
        return Window(first, first + len(entries) - 1, lambda values: _look_up(values, first, entries) / white)
    found = _window_of(header)
    if found is not None:
        return found
    is_hounsfield = 0x00281052 in header and header.text(0x00281054) in ("", "HU")
    return _linear(*SOFT_TISSUE) if modality == "CT" and is_hounsfield else None


def _window_of(header: Header) -> Window | None:
    """The first window of the header; None if there is none that is valid."""
    centers, widths = header.decimals(0x00281050)[:1], header.decimals(0x00281051)[:1]
    if not centers or not widths:
        return None
    center, width, function = centers[0], widths[0], header.text(0x00281056) or "LINEAR"
    if function == "SIGMOID" and width > 0:
        return Window(center - width / 2, center + width / 2, lambda x: 1 / (1 + np.exp(-4 * (x - center) / width)))
    if function == "LINEAR_EXACT" and width > 0:
        return Window(center - width / 2, center + width / 2)
    return _linear(center, width) if width >= 1 else None


def _linear(center: float, width: float) -> Window:
    """PS3.3 C.11.2.1.2.1: black up to center - 0.5 - (width - 1) / 2."""
    return Window(center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)


def _table(item: Header, signed: bool) -> tuple[int, np.ndarray, int] | None:
    """What its first entry is for, its entries, and the level that means white; None if it is broken."""
    descriptor = item.words(0x00283002)
    if len(descriptor) != 3:
        return None
    count, first, bits = (int(value) for value in descriptor)
    count = count or SPREAD
    declared = item.is_signed(0x00283002)
    if first >= SPREAD // 2 and (signed if declared is None else declared):
        first -= SPREAD
    raw = item.raw(0x00283006)
    entries = item.array(0x00283006, "u1" if bits <= 8 and len(raw) in (count, count + 1) else "u2")[:count]
    if len(entries) < count or not 1 <= bits <= 16:
        return None
    return first, entries, (1 << bits) - 1


def _look_up(values: np.ndarray, first: int, entries: np.ndarray) -> np.ndarray:
    return entries[(np.floor(values + 0.5).clip(first, first + len(entries) - 1) - first).astype(np.int64)]


def _percentiles(values: np.ndarray, counts: np.ndarray | None) -> tuple[float, float]:
    """Values that PERCENTILES of the pixels do not exceed; the ends if those are one and the same."""
    order = np.argsort(values, kind="stable")
    values = values[order]
    ranks = np.arange(1, len(values) + 1) if counts is None else np.cumsum(counts[order])
    low, high = (float(values[np.searchsorted(ranks, ranks[-1] * share / 100)]) for share in PERCENTILES)
    if low < high:
        return low, high
    there = values if counts is None else values[counts[order] > 0]
    return float(there[0]), float(there[-1])


def _stored_range(layout: Layout, seen: np.ndarray) -> tuple[int, int]:
    half = 1 << layout.stored - 1
    low, high = (-half, half - 1) if layout.signed else (0, 2 * half - 1)
    return min(low, int(seen.min())), max(high, int(seen.max()))


def _whole_range(
    values: np.ndarray, seen: np.ndarray, ends: np.ndarray, window: Window, unit: float
) -> tuple[np.ndarray, tuple[int, int], int]:
    """Modality values as levels, one for each `unit` if 65536 suffice, the window in those levels, and the highest.

    Values that spread too far share levels, as long as the window has FINEST_WINDOW of them; beyond, they are cut off.
    Levels begin at what the header's bits can hold at least (`ends`), so that the slices of a series agree.
    """
    for low, high in ((ends.min(), ends.max()), (seen.min(), seen.max())):
        bottom, top = min(low, window.low), max(high, window.high)
        if top - bottom <= WHITE * unit:
            break
    else:
        unit = max(unit, min((top - bottom) / WHITE, (window.high - window.low) / FINEST_WINDOW or np.inf))
        bottom = max(bottom, (window.low + window.high - WHITE * unit) / 2)
        top = min(top, bottom + WHITE * unit)

    def level(value: np.ndarray) -> np.ndarray:
        return np.floor((value - bottom) / unit + 0.5).clip(0, WHITE)

    black, white = (int(level(np.array(end))) for end in (window.low, window.high))
    if white <= black:  # a threshold, or less than a level
        black = int(np.floor((window.low - bottom) / unit).clip(0, WHITE - 1))
        white = black + 1
    return level(values), (black, white), max(int(level(top)), white)
