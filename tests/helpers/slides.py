"""Whole slides as scanners write them: pyramids of JPEG tiles, with tissue here and there."""

from __future__ import annotations

import io

import numpy as np
import tifffile

APERIO = "Aperio Image Library v11.2.1\n{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q=70|AppMag = 20"


def tissue(height: int, width: int, spots: list[tuple[int, int, int]]) -> np.ndarray:
    """uint8 [height, width, 3]: glass, with a stained disc of (row, column, radius) for each of `spots`."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:height, :width]
    pixels = rng.integers(238, 246, (height, width, 1)).astype(np.uint8).repeat(3, axis=2)
    stain = np.array([180, 90, 150]) + rng.integers(-30, 30, (height, width, 1))
    for row, column, radius in spots:
        inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        pixels[inside] = stain[inside].astype(np.uint8)
    return pixels


def slide(pixels: np.ndarray, *, mpp: float | None, levels: int = 3, aperio: bool = True, dpi: bool = False) -> bytes:
    """A pyramid whose levels are a quarter each. mpp: what it says of its microns per pixel, in Aperio's way or as
    a resolution; None says nothing."""
    buffer = io.BytesIO()
    height, width = pixels.shape[:2]
    description = None
    if aperio:
        description = APERIO.format(width=width, height=height) + (f"|MPP = {mpp}" if mpp and not dpi else "")
    resolution = (1e4 / mpp, 1e4 / mpp) if mpp and dpi else None
    with tifffile.TiffWriter(buffer) as out:
        for level in range(levels):
            shown = pixels[:: 4**level, :: 4**level]
            out.write(
                shown,
                tile=(64, 64),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 95},
                subfiletype=int(level > 0),
                description=description if level == 0 or aperio else None,
                metadata=None,
                resolution=resolution if level == 0 else None,
                resolutionunit="CENTIMETER" if resolution and level == 0 else None,
            )
    return buffer.getvalue()


def damaged(data: bytes, tile: int) -> bytes:
    """The same with one tile of the first level that is no JPEG."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        start, length = page.dataoffsets[tile], page.databytecounts[tile]
    return data[:start] + bytes(length) + data[start + length :]
