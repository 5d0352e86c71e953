"""How a DICOM file's pixels are laid out, as its header says, checked before any memory is taken for them."""

from __future__ import annotations

from typing import NamedTuple

from fastfgssl.archive.dicom.header import DOUBLE_PIXELS, FLOAT_PIXELS, DicomFile
from fastfgssl.archive.outcome import Unusable

GRAY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")


class Layout(NamedTuple):
    rows: int
    columns: int
    samples: int
    """1, or 3 of colour."""
    photometric: str
    allocated: int
    stored: int
    """Bits a sample: of memory, and of those the ones that count."""
    shift: int
    """Bits below those that count."""
    signed: bool
    planar: bool
    """Colours one after the other instead of pixel by pixel."""
    frames: int
    is_float: bool

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


def read_layout(file: DicomFile, max_pixels: int) -> Layout:
    """Raises Unusable for what cannot be, for what is not supported, and for frames above `max_pixels` pixels."""
    header = file.header
    rows, columns = header.word(0x00280010), header.word(0x00280011)
    if not rows or not columns:
        raise Unusable("damaged or unsupported DICOM: pixels without Rows and Columns")
    if rows * columns > max_pixels:
        raise Unusable(f"too large: {columns} x {rows} pixels, --max-pixels is {max_pixels}")
    samples = header.word(0x00280002) or 1
    photometric = header.text(0x00280004) or ("MONOCHROME2" if samples == 1 else "RGB")
    if photometric not in (GRAY if samples == 1 else COLOUR if samples == 3 else ()):
        known = photometric if photometric in ("ARGB", "CMYK", "HSV", *GRAY, *COLOUR) else "an unknown code"
        raise Unusable(f"unsupported DICOM: photometric interpretation {known} with {samples} samples a pixel")
    is_float = file.tag in (FLOAT_PIXELS, DOUBLE_PIXELS)
    allocated = {FLOAT_PIXELS: 32, DOUBLE_PIXELS: 64}.get(file.tag) or header.word(0x00280100) or 0
    if allocated not in ((32, 64) if is_float else (1, 8, 16, 32)):
        raise Unusable(f"unsupported DICOM: {allocated} bits allocated")
    if is_float and samples != 1:
        raise Unusable("unsupported DICOM: colour as floats")
    stored = header.word(0x00280101) or allocated
    if is_float or not 1 <= stored <= allocated:
        stored = allocated
    high_bit = header.word(0x00280102)
    if high_bit is None or not stored - 1 <= high_bit < allocated:
        high_bit = stored - 1
    frames = header.decimals(0x00280008)
    return Layout(
        rows,
        columns,
        samples,
        photometric,
        allocated,
        stored,
        high_bit + 1 - stored,
        header.word(0x00280103) == 1 and not is_float,
        header.word(0x00280006) == 1,
        max(1, int(frames[0])) if frames else 1,
        is_float,
    )
