"""A DICOM file's header, read without believing it: values as bytes until asked for, pixels found but not touched."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, UID_dictionary

from fastfgssl.archive.outcome import Unusable

IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
FLOAT_PIXELS, DOUBLE_PIXELS, PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010
UNDEFINED = 0xFFFFFFFF
LONGEST_TEXT = 4096  # bytes of a value of which all that is read is codes and numbers
# Bytes of a deflated file that are inflated to find its pixels; then only as many as they need. The header of an
# enhanced object with a thousand frames has about 2 MB.
HEADERS = (1 << 20, 1 << 24)

# Everything that is ever read, so that nothing else is kept: all of it is codes, numbers and identifiers.
TAGS = [
    0x00080008, 0x00080016, 0x00080060, 0x00080070, 0x0020000D, 0x0020000E, 0x00100020,
    0x00180015, 0x00186011, 0x00181164, 0x00182010, 0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010,
    0x00280011, 0x00280030, 0x00280034, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121,
    0x00280122, 0x00280123, 0x00280124, 0x00280125, 0x00280301, 0x00281050, 0x00281051, 0x00281052, 0x00281053,
    0x00281054, 0x00281056, 0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203, 0x00281221,
    0x00281222, 0x00281223, 0x00283000, 0x00283010, 0x00041220, 0x00480006, 0x00480007, 0x00480010, 0x52009229,
    0x52009230, 0x7FE00001, 0x7FE00002,
]  # fmt: skip


class Header:
    """Values by tag; of several data sets, those of the first that has one.

    What is missing, empty or no value of its kind reads as nothing: no value raises.
    """

    def __init__(self, *datasets: Dataset) -> None:
        self._items: dict[int, list[Dataset]] = {}  # of sequences, parsed once for all frames
        self._elements: dict[int, Any] = {}
        for dataset in reversed(datasets):
            self._elements.update({int(tag): element for tag, element in dataset.items() if element.value})

    def __contains__(self, tag: int) -> bool:
        return tag in self._elements

    def within(self, items: Sequence[Dataset]) -> Header:
        """The same with `items` looked at first."""
        result = Header(*items)
        result._elements = {**self._elements, **result._elements}
        return result

    def raw(self, tag: int) -> bytes:
        element = self._elements.get(tag)
        return element.value if element is not None and isinstance(element.value, bytes) else b""

    def texts(self, tag: int) -> list[str]:
        """Its values, without the spaces and zeros that pad them."""
        return [part.strip(" \0") for part in self.raw(tag)[:LONGEST_TEXT].decode("latin-1").split("\\")]

    def text(self, tag: int) -> str:
        return self.texts(tag)[0]

    def decimals(self, tag: int) -> list[float]:
        """Decimal or integer strings; up to the first that is none."""
        values: list[float] = []
        for text in self.texts(tag):
            try:
                value = float(text.replace(",", "."))
            except ValueError:
                break
            if not math.isfinite(value):
                break
            values.append(value)
        return values

    def words(self, tag: int, *, signed: bool = False, code: str = "") -> list[int | float]:
        """16-bit integers, or what else `code` of `struct` says; up to 65,536 of them."""
        code = code or ("h" if signed else "H")
        raw = self.raw(tag)
        count = min(len(raw) // struct.calcsize(code), 1 << 16)
        return list(struct.unpack_from(f"{self._byte_order(tag)}{count}{code}", raw))

    def word(self, tag: int) -> int | None:
        values = self.words(tag)
        return int(values[0]) if values else None

    def is_signed(self, tag: int) -> bool | None:
        """What an explicit header says of a value that may be signed or not."""
        element = self._elements.get(tag)
        return {"SS": True, "US": False}.get(element.VR or "") if element is not None else None

    def array(self, tag: int, dtype: str) -> np.ndarray:
        raw = self.raw(tag)
        kind = np.dtype(dtype).newbyteorder(self._byte_order(tag))
        return np.frombuffer(raw, kind, len(raw) // kind.itemsize).astype(dtype)

    def items(self, tag: int) -> list[Dataset]:
        """Of a sequence."""
        if tag not in self._items:
            element = self._elements.get(tag)
            try:
                if isinstance(element, RawDataElement):
                    element = convert_raw_data_element(element)
                found = [item for item in element.value if isinstance(item, Dataset)] if element is not None else []
            except Exception:  # whatever a broken sequence leads pydicom to
                found = []
            self._items[tag] = found
        return self._items[tag]

    def _byte_order(self, tag: int) -> Literal["<", ">"]:
        return "<" if getattr(self._elements.get(tag), "is_little_endian", True) else ">"


class DicomFile(NamedTuple):
    header: Header
    syntax: str
    """UID of the transfer syntax; empty if the file does not say."""
    little_endian: bool
    data: bytes
    """What `start` counts in: the file's bytes, or those of a deflated file inflated."""
    tag: int
    """Of the pixel data; 0 if there are none."""
    start: int
    """Where their value begins."""
    length: int
    """Bytes as declared, not as there are; UNDEFINED if in fragments."""
    in_words: bool
    """Whether it is declared as words of 16 bits (OW), which big-endian files turn around even if they hold bytes."""
    kind: str
    """What class of object it is, by the standard's name; empty if the file does not say."""


def looks_like_dicom(data: bytes) -> bool:
    """Whether to read it as DICOM; many archives hold files without the preamble of 128 bytes."""
    if data[128:132] == b"DICM" or data[:4] == b"DICM":
        return True
    if len(data) < 12 or data[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    if data[4:6].isalpha() and data[4:6].isupper():
        return True
    element, length = struct.unpack("<HI", data[2:8])
    return data[0] != 0 and element <= 0x0100 and length <= 1024


def read_file(data: bytes, max_bytes: int, *, last: int = PIXELS) -> DicomFile:
    """Reads the header, up to the tag `last`. Raises Unusable if it is none, or inflates to more than `max_bytes`."""
    if not looks_like_dicom(data):
        raise Unusable("damaged or unsupported DICOM: it does not begin as DICOM files do")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom says much about files that are read rightly
            return _read(data, max_bytes, last)
    except (Unusable, MemoryError):
        raise
    except Exception as error:  # whatever the damage leads pydicom to, such as recursion through nested sequences
        raise Unusable(f"damaged or unsupported DICOM: header: {type(error).__name__}") from error


def _read(data: bytes, max_bytes: int, last: int) -> DicomFile:
    stream = io.BytesIO(data)
    stream.seek(132 if data[128:132] == b"DICM" else 4 if data[:4] == b"DICM" else 0)
    meta = Header()
    if data[stream.tell() : stream.tell() + 2] == b"\x02\0":
        meta = Header(read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2))
    syntax = meta.text(0x00020010)
    if syntax == DEFLATED:
        return _inflate(data[stream.tell() :], meta, max_bytes)
    return _read_body(data, stream.tell(), syntax, meta, last)


def _inflate(deflated: bytes, meta: Header, max_bytes: int) -> DicomFile:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data, rest = b"", deflated

    def inflate_to(size: int) -> None:
        nonlocal data, rest
        if size > len(data) and not inflater.eof:  # zlib takes a length of 0 for no limit
            data += inflater.decompress(rest, size - len(data))
            rest = inflater.unconsumed_tail

    for size in HEADERS:
        inflate_to(min(size, max_bytes))
        file = _read_body(data, 0, DEFLATED, meta)
        if file.tag:
            break
    if file.tag and file.length != UNDEFINED:
        if file.start + file.length > max_bytes:
            raise Unusable(f"too large: its pixels inflate to {file.length} bytes, at most {max_bytes} are taken")
        inflate_to(file.start + file.length)
    return file._replace(data=data)


def _read_body(data: bytes, start: int, syntax: str, meta: Header, last: int = PIXELS) -> DicomFile:
    head = data[start : start + 6]
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    little_endian = syntax != BIG_ENDIAN
    if not syntax:  # big-endian groups of headers below 0x0100 read as 0x0100 and above
        little_endian = not (explicit and head[:1] == b"\0" and head[1:2] != b"\0")
    stream = io.BytesIO(data)
    stream.seek(start)
    implicit = syntax == IMPLICIT or (not syntax and not explicit)
    dataset = read_dataset(
        stream,
        implicit,
        little_endian,
        stop_when=lambda tag, _vr, _length: tag > last or FLOAT_PIXELS <= tag <= PIXELS,
        specific_tags=list(TAGS),
    )
    header = Header(dataset)
    kind = header.text(0x00080016) or meta.text(0x00020002)
    name = UID(kind).name if kind in UID_dictionary else "a private class of object" if kind else ""
    tag, value, length = _pixel_element(data, stream.tell(), little_endian, dataset.original_encoding[0])
    in_words = data[stream.tell() + 4 : stream.tell() + 6] == b"OW"
    return DicomFile(header, syntax, little_endian, data, tag, value, length, in_words, name)


def _pixel_element(data: bytes, start: int, little_endian: bool, implicit: bool | None) -> tuple[int, int, int]:
    """Tag, start of the value and its length; zeros if the header ended without pixels."""
    order = "<" if little_endian else ">"
    if start + 8 > len(data):
        return 0, 0, 0
    group, element = struct.unpack_from(order + "HH", data, start)
    tag = group << 16 | element
    if not FLOAT_PIXELS <= tag <= PIXELS:
        return 0, 0, 0
    if not implicit and data[start + 4 : start + 6].isalpha():
        if start + 12 > len(data):
            return 0, 0, 0
        return tag, start + 12, struct.unpack_from(order + "I", data, start + 8)[0]
    return tag, start + 8, struct.unpack_from(order + "I", data, start + 4)[0]
