"""A frame's bytes decoded to the values that were stored, whatever compressed them."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import imagecodecs
import numpy as np
from pydicom.uid import UID, UID_dictionary

from fastfgssl.archive.dicom.layout import Layout
from fastfgssl.archive.outcome import Unusable

NATIVE = ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_JPEG = "1.2.840.10008.1.2.4."
CODECS = {
    **{f"{_JPEG}{number}": "JPEG" for number in (50, 51, 53, 55, 57, 70)},
    **{f"{_JPEG}{number}": "JPEG-LS" for number in (80, 81)},
    **{f"{_JPEG}{number}": "JPEG 2000" for number in (90, 91, 92, 93)},
    **{f"{_JPEG}{number}": "HTJ2K" for number in (201, 202, 203)},
    "1.2.840.10008.1.2.5": "RLE",
}

# markers of JPEG, but for tables (C4, CC) and extensions (C8), and of JPEG-LS
FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
LOSSLESS_JPEG = (0xC3, 0xC7, 0xCB, 0xCF)


class Codestream(NamedTuple):
    """What a compressed frame says of itself."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool
    lossless_jpeg: bool = False
    jpeg_colour: str = ""
    """RGB or YCBCR where the stream tells, else empty."""


def codec(syntax: str) -> str:
    """Its name; empty for uncompressed. Raises Unusable for what nothing here decodes, such as video."""
    if syntax in NATIVE:
        return ""
    if syntax not in CODECS:
        name = UID(syntax).name if syntax in UID_dictionary else "a private one"
        raise Unusable(f"unsupported DICOM: transfer syntax {name}")
    return CODECS[syntax]


def decode_native(data: bytes | memoryview, layout: Layout, index: int, *, little_endian: bool) -> np.ndarray:
    """[rows, columns], of colour [rows, columns, 3]: what is stored, or floats. Bits that do not count are left out."""
    order = "<" if little_endian else ">"
    if layout.allocated == 1:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        first = index * layout.pixels % 8
        return bits[first : first + layout.pixels].reshape(layout.rows, layout.columns)
    if layout.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        return _whole_colour(np.frombuffer(data, np.uint8), layout)
    kind = "f" if layout.is_float else "u"
    values = np.frombuffer(data, f"{order}{kind}{layout.allocated // 8}")
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return _as_stored(_shaped(values, layout), layout)


def decode_compressed(data: bytes, layout: Layout, name: str) -> np.ndarray:
    """The same of a frame that `name` compressed; colour is RGB already if the codec knows of colour.

    Raises Unusable if the frame is damaged, or larger or of other samples than the header says.
    """
    try:
        if name == "RLE":
            return _decode_rle(data, layout)
        stream = read_jpeg_2000(data) if name in ("JPEG 2000", "HTJ2K") else read_jpeg(data)
        if (stream.rows, stream.columns, stream.samples) != (layout.rows, layout.columns, layout.samples):
            raise Unusable(
                f"damaged or unsupported DICOM: {name} of {stream.columns} x {stream.rows} pixels with "
                f"{stream.samples} samples in a file of {layout.columns} x {layout.rows} with {layout.samples}"
            )
        if stream.precision > layout.allocated:
            raise Unusable(
                f"damaged or unsupported DICOM: {name} of {stream.precision} bits in a file of {layout.allocated}"
            )
        values = _decode(data, layout, name, stream)
    except (Unusable, MemoryError):
        raise
    except Exception as error:  # each codec has exceptions of its own
        reason = " ".join(re.sub(r"^\w+ returned ", "", str(error)).split())[:100] or type(error).__name__
        raise Unusable(f"damaged or unsupported DICOM: {name}: {reason}") from error
    if values.shape[:2] != (layout.rows, layout.columns) or values.size != layout.pixels * layout.samples:
        raise Unusable(f"damaged or unsupported DICOM: {name} decodes to {values.shape}")
    return _with_sign(values, layout, stream)


def _decode(data: bytes, layout: Layout, name: str, stream: Codestream) -> np.ndarray:
    # What is missing, libjpeg and OpenJPH make gray without a word, and CharLS has been seen to seek for 12 seconds.
    if not data.rstrip(b"\0\xff").endswith(b"\xd9"):
        raise Unusable(f"damaged or unsupported DICOM: {name} without its end")
    if name == "JPEG-LS":
        return imagecodecs.jpegls_decode(data)
    if name == "HTJ2K":
        # before 2026.1, the last for Python 3.10 among them, without OpenJPH: OpenJPEG reads these as well
        return getattr(imagecodecs, "htj2k_decode", imagecodecs.jpeg2k_decode)(data)
    if name == "JPEG 2000":
        return imagecodecs.jpeg2k_decode(data)
    if layout.samples == 1:
        return imagecodecs.jpeg8_decode(data)
    colour = stream.jpeg_colour or ("RGB" if layout.photometric == "RGB" else "YCBCR")
    # lossless JPEG has no colours of its own: `to_rgb` turns them
    return imagecodecs.jpeg8_decode(data, colorspace=colour, outcolorspace=colour if stream.lossless_jpeg else "RGB")


def becomes_rgb(name: str, data: bytes, layout: Layout) -> bool:
    """Whether decoding this frame of colour makes RGB of it whatever the photometric interpretation says."""
    if name in ("JPEG 2000", "HTJ2K"):
        return layout.photometric in ("YBR_ICT", "YBR_RCT", "RGB")
    return name == "JPEG" and not read_jpeg(data).lossless_jpeg


def read_jpeg(data: bytes) -> Codestream:
    """From the markers of JPEG and JPEG-LS."""
    position, jfif, adobe = 2, False, None
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # fill, and markers without a length
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = data[position + 4 : position + 2 + length]
        if marker == 0xE0 and body[:5] == b"JFIF\0":
            jfif = True
        if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        if marker in FRAME_HEADERS:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", body)
            identifiers = bytes(body[6 + 3 * number] for number in range(samples))
            colour = ""
            if identifiers.upper() == b"RGB":
                colour = "RGB"
            elif jfif or adobe == 1:
                colour = "YCBCR"
            return Codestream(rows, columns, samples, precision, False, marker in LOSSLESS_JPEG, colour)
        position += 2 + length
    raise Unusable("damaged or unsupported DICOM: no JPEG")


def read_jpeg_2000(data: bytes) -> Codestream:
    """From the SIZ marker, of a bare codestream or one in the file format."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 1 << 16)
    if start < 0:
        raise Unusable("damaged or unsupported DICOM: no JPEG 2000")
    columns, rows, left, top = struct.unpack_from(">4I", data, start + 8)
    tile_columns, tile_rows = struct.unpack_from(">2I", data, start + 24)
    samples, depth = struct.unpack_from(">HB", data, start + 40)
    if not tile_columns or not tile_rows or (columns // tile_columns) * (rows // tile_rows) > 65535:
        raise Unusable("damaged or unsupported DICOM: JPEG 2000 of more tiles than it can have")
    return Codestream(rows - top, columns - left, samples, (depth & 0x7F) + 1, bool(depth & 0x80))


def _decode_rle(data: bytes, layout: Layout) -> np.ndarray:
    dtype = np.dtype(f"<u{layout.allocated // 8}") if layout.allocated > 1 else np.dtype(np.uint8)
    planes = layout.samples * dtype.itemsize
    if len(data) < 64 or struct.unpack_from("<I", data)[0] != planes:
        raise Unusable(f"damaged or unsupported DICOM: RLE of other than {planes} segments")
    size = layout.pixels * planes
    decoded = imagecodecs.dicomrle_decode(data, dtype, out=size)
    if len(decoded) != size:
        raise Unusable(f"damaged or unsupported DICOM: RLE of {len(decoded)} of {size} bytes")
    return _as_stored(_shaped(np.frombuffer(decoded, dtype), layout._replace(planar=True)), layout)


def _shaped(values: np.ndarray, layout: Layout) -> np.ndarray:
    if layout.samples == 1:
        return values.reshape(layout.rows, layout.columns)
    if layout.planar:
        return np.ascontiguousarray(values.reshape(3, layout.rows, layout.columns).transpose(1, 2, 0))
    return values.reshape(layout.rows, layout.columns, 3)


def _as_stored(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Without what else lies in the bits of a sample, such as overlays, and with the sign."""
    if layout.is_float:
        return values
    above = 8 * values.itemsize - layout.stored - layout.shift
    if layout.signed:
        values = values.view(f"i{values.itemsize}")
        return values << above >> (above + layout.shift) if above or layout.shift else values
    if layout.shift:
        values = values >> layout.shift
    highest = (1 << layout.stored) - 1
    return values & values.dtype.type(highest) if above and values.max() > highest else values


def _with_sign(values: np.ndarray, layout: Layout, stream: Codestream) -> np.ndarray:
    """Codecs know little of signs: the header's counts, of a number with as many bits as the stream has."""
    if stream.signed == layout.signed or values.dtype.kind not in "iu":
        return values
    bits = stream.precision
    if layout.signed and bits > layout.stored and values.max() < 1 << layout.stored:
        bits = layout.stored
    above = 8 * values.itemsize - bits
    values = values.view(f"{'i' if layout.signed else 'u'}{values.itemsize}")
    return values << above >> above if above else values


def _whole_colour(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Of Y Y Cb Cr for two pixels each."""
    if layout.columns % 2 or layout.allocated != 8:
        raise Unusable(f"damaged or unsupported DICOM: {layout.photometric} of an odd width or {layout.allocated} bits")
    pairs = values.reshape(layout.rows, layout.columns // 2, 4)
    whole = np.empty((layout.rows, layout.columns, 3), np.uint8)
    whole[..., 0] = pairs[..., :2].reshape(layout.rows, layout.columns)
    whole[..., 1] = np.repeat(pairs[..., 2], 2, axis=1)
    whole[..., 2] = np.repeat(pairs[..., 3], 2, axis=1)
    return whole
