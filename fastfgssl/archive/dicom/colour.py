"""DICOM's colours as RGB of 8 bits: palettes and luminance with chrominance."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fastfgssl.archive.dicom.header import Header
from fastfgssl.archive.dicom.layout import Layout
from fastfgssl.archive.outcome import Unusable

MOST_ENTRIES = 1 << 16
DAMAGED = "damaged or unsupported DICOM: palette"


def to_8_bits(values: np.ndarray, stored: int) -> np.ndarray:
    """The upper 8 of `stored` bits; fewer are spread over all levels."""
    if stored == 8 and values.dtype == np.uint8:
        return values
    if stored >= 8:
        return (values >> (stored - 8)).clip(0, 255).astype(np.uint8)
    return (values.clip(0, (1 << stored) - 1).astype(np.uint16) * 255 // ((1 << stored) - 1)).astype(np.uint8)


def to_rgb(values: np.ndarray, photometric: str) -> np.ndarray:
    """[rows, columns, 3] uint8 of a photometric interpretation (PS3.3 C.7.6.3.1.2) to RGB."""
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        return np.asarray(Image.fromarray(values, "YCbCr").convert("RGB"))  # CCIR 601 with all levels, as JPEG's
    if photometric == "YBR_PARTIAL_422":
        luma, blue, red = (values[..., channel].astype(np.float32) for channel in range(3))
        luma, blue, red = (luma - 16) * (255 / 219), (blue - 128) * (255 / 224), (red - 128) * (255 / 224)
        rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
        return (rgb + 0.5).clip(0, 255).astype(np.uint8)
    return values


def apply_palette(values: np.ndarray, header: Header, layout: Layout) -> np.ndarray:
    """RGB uint8 [rows, columns, 3] of indices [rows, columns]; indices outside the palette take its ends."""
    tables = [_palette(header, layout, channel) for channel in range(3)]
    first = min(table[0] for table in tables)
    last = max(table[0] + len(table[1]) for table in tables)
    index = np.arange(first, last)
    colours = np.stack([table[(index - start).clip(0, len(table) - 1)] for start, table in tables], axis=-1)
    return np.take(colours, values.clip(first, last - 1).astype(np.int64) - first, axis=0)


def _palette(header: Header, layout: Layout, channel: int) -> tuple[int, np.ndarray]:
    """The index that its first entry is for, and its entries as uint8."""
    descriptor = header.words(0x00281101 + channel)
    if len(descriptor) != 3:
        raise Unusable(f"{DAMAGED}: no descriptor")
    count, first, bits = (int(value) for value in descriptor)
    count = count or MOST_ENTRIES
    if layout.signed and first >= 1 << 15:
        first -= 1 << 16
    segments = header.array(0x00281221 + channel, "u1" if bits == 8 else "u2")
    if len(segments):
        entries = expand_segments(segments.astype(np.int64), count)
    else:
        raw = header.raw(0x00281201 + channel)
        entries = header.array(0x00281201 + channel, "u1" if len(raw) in (count, count + 1) else "u2")[:count]
    if len(entries) < count:
        raise Unusable(f"{DAMAGED} of {len(entries)} of {count} entries")
    if bits == 16 and entries.max() <= 255:  # a mistake that some devices make
        bits = 8
    return first, to_8_bits(entries, bits if bits in (8, 16) else 16)


def expand_segments(words: np.ndarray, count: int) -> np.ndarray:
    """`count` entries of a segmented palette (PS3.3 C.7.9.2): runs of entries, ramps, and repeats of earlier ones."""
    entries: list[int] = []

    def run(position: int, depth: int) -> int:
        """Adds what the segment at `position` means and returns where the next begins."""
        kind, length = int(words[position]), int(words[position + 1])
        if kind == 0:
            entries.extend(words[position + 2 : position + 2 + length].tolist())
            return position + 2 + length
        if kind == 1 and entries:
            end, begin = int(words[position + 2]), entries[-1]
            steps = range(1, min(length, count) + 1)
            entries.extend(round(begin + (end - begin) * step / max(1, length)) for step in steps)
            return position + 3
        if kind == 2 and depth == 0:
            place = int(words[position + 2]) | int(words[position + 3]) << (16 if words.max() > 255 else 8)
            for _ in range(min(length, count)):
                if len(entries) >= count:
                    break
                place = run(place, depth + 1)
            return position + 4
        raise Unusable(f"{DAMAGED}: unknown segment")

    position = 0
    try:
        while position < len(words) and len(entries) < count:
            position = run(position, 0)
    except IndexError:
        raise Unusable(f"{DAMAGED}: cut short") from None
    return np.array(entries[:count], np.int64)
