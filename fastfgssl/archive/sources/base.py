"""What every kind of source has in common: a listing in a fixed order, and the bytes of what was listed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

_OF_IMAGES = ".jpg .jpeg .jpe .jfif .png .tif .tiff .bmp .webp .gif .jp2 .j2k .jpx .jls .jxl .avif .heic"
IMAGE_SUFFIXES = frozenset(f"{_OF_IMAGES} .dcm .dicom .ima".split())
_OF_DICOM = re.compile(r"(im|img|image|i|ct|cr|dx|mg|mr|nm|pt|rf|us|xa)?[-_]?\d[\d.]*", re.IGNORECASE)
"""Names that devices give to DICOM files without a suffix: a number behind a modality, or a UID."""
UNKNOWN = "other suffix", "no suffix"
"""Kinds of files whose names do not tell what they are."""
JUNK = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_KNOWN_SUFFIXES = frozenset(
    suffix
    for suffixes in (
        ".csv .tsv .txt .md .pdf .xml .json .jsonl .yaml .html .xls .xlsx .doc .docx .log .ini .py .ipynb .db .sqlite",
        ".zip .tar .gz .bz2 .xz .zst .7z .rar .npy .npz .h5 .pkl .parquet .arrow .idx .exe .dll .bak .tmp",
        ".nii .nrrd .mha .mhd .svs .ndpi .mp4 .avi .mov",
    )
    for suffix in suffixes.split()
)


class Entry(NamedTuple):
    """A file, or a member of a container."""

    name: bytes
    """Its path below the source, with `/`."""
    size: int
    """Bytes; -1 where only reading tells."""
    version: int
    """A number that changes when the bytes may have: the time of the last change in ns, where there is one."""
    skip: str = ""
    """Why it is not read: the kind of thing that it is; empty for what may be an image."""


class Source(Protocol):
    """Where images come from. It is pickled, and opened again in each worker, which reads what the parent lists."""

    @property
    def name(self) -> str:
        """What its entries are told apart by from another source's: the last part of its path."""

    def entries(self) -> Iterator[Entry]:
        """Everything in it, in an order that follows from the names alone: the same wherever it lies.

        Raises UserError if it cannot be listed.
        """

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        """Of some entries, given in the order of `entries()`, the bytes of each, or why they cannot be read.

        One at a time, as they are asked for: a compressed container is read forwards only.
        """

    def where(self, name: bytes) -> str:
        """Where an entry lies, for messages and tables; it may hold surrogates, as Python's file names do."""


class SourceOptions(NamedTuple):
    """What a source does not tell by itself."""

    leave_out: Sequence[str] = ()
    """Patterns such as `*_mask.png`: files whose names match one are no images."""
    follow_links: bool = False
    """Whether symbolic links are followed that lead out of the source."""


def junk(parts: Sequence[str]) -> str:
    """What operating systems leave beside files, as a kind to be skipped; empty for anything else.

    parts: of a path, the name last.
    """
    if "__MACOSX" in parts or parts[-1].startswith("._"):
        return "AppleDouble"
    return parts[-1] if parts[-1] in JUNK else ""


def may_be_image(name: str) -> bool:
    """Whether a file of that name is read to see whether it is an image."""
    return is_named_image(name) or _OF_DICOM.fullmatch(name) is not None


def is_named_image(name: str) -> bool:
    """Whether a file's name says that it is an image, so that anything else in it is a fault."""
    return suffix_of(name) in IMAGE_SUFFIXES


def suffix_kind(name: str) -> str:
    """The suffix of a file that is no image by its name, if it is a common one: others may be parts of names."""
    suffix = suffix_of(name)
    return suffix if suffix in _KNOWN_SUFFIXES else "other suffix" if suffix else "no suffix"


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in small letters; empty for none, and for a name that begins with its only dot."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if stem and dot and suffix else ""


def display(name: bytes) -> str:
    """A name as text that is valid UTF-8, whatever the file system has."""
    return name.decode("utf-8", "backslashreplace")
