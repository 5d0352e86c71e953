"""What every kind of source has in common: a listing in a fixed order, and the bytes of what was listed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from fastfgssl.archive.outcome import Unusable

_OF_IMAGES = ".jpg .jpeg .jpe .jfif .png .tif .tiff .bmp .webp .gif .jp2 .j2k .jpx .jls .jxl .avif .heic"
IMAGE_SUFFIXES = frozenset(f"{_OF_IMAGES} .dcm .dicom .ima".split())
_OF_DICOM = re.compile(r"(im|img|image|i|ct|cr|dx|mg|mr|nm|pt|rf|us|xa)?[-_]?\d[\d.]*", re.IGNORECASE)
"""Names that devices give to DICOM files without a suffix: a number behind a modality, or a UID."""
UNKNOWN = "other suffix", "no suffix"
"""Kinds of files whose names do not tell what they are: their first `DICOM_PREFIX` bytes may."""
DICOM_PREFIX = 132
SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".scn", ".bif"})
CONTAINER_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
JUNK = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_KNOWN_SUFFIXES = frozenset(
    suffix
    for suffixes in (
        ".csv .tsv .txt .md .pdf .xml .json .jsonl .yaml .html .xls .xlsx .doc .docx .log .ini .py .ipynb .db .sqlite",
        ".zip .tar .gz .bz2 .xz .zst .7z .rar .npy .npz .h5 .pkl .cls .parquet .arrow .idx .exe .dll .bak .tmp",
        ".nii .nrrd .mha .mhd .svs .ndpi .mrxs .dat .mp4 .avi .mov",
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
    damaged: bool = False
    """Whether it should have been read and is of no use, such as the rest of a damaged container: `skip` says why."""


Contents = bytes | list[bytes]
"""Of an entry; of several files where one entry stands for them, as for the levels of a slide."""


def nothing() -> None:
    """What is called where nobody wants to know."""


class Source(Protocol):
    """Where images come from. It is pickled, and opened again in each worker, which reads what the parent lists."""

    @property
    def name(self) -> str:
        """What its entries are told apart by from another source's: the last part of its path."""

    @property
    def root(self) -> Path:
        """What paths in tables of labels may be relative to."""

    def entries(self) -> Iterator[Entry]:
        """Everything in it, in an order that follows from the names alone: the same wherever it lies.

        Raises UserError if it cannot be listed.
        """

    def read(
        self, entries: Sequence[Entry], alive: Callable[[], object] = nothing
    ) -> Iterator[Contents | OSError | Unusable]:
        """Of some entries, given in the order of `entries()`, the bytes of each, or why there are none.

        OSError: they cannot be read now; Unusable: nor ever. One at a time, as they are asked for: a compressed
        container is read forwards only, and `alive` is called again and again on the way to an entry.
        """

    def where(self, name: bytes) -> str:
        """Where an entry lies, for messages and tables; it may hold surrogates, as Python's file names do."""


class FileSource(Source, Protocol):
    """One whose entries are files, some of which may be containers."""

    only: bytes | None
    """The file that it is, if it is a single one."""

    def open(self, name: bytes) -> BinaryIO:
        """An entry's bytes as a file to read and seek in. Raises OSError."""


class SourceOptions(NamedTuple):
    """What a source does not tell by itself."""

    leave_out: Sequence[str] = ()
    """Patterns such as `*_mask.png`: files whose names match one are no images."""
    follow_links: bool = False
    """Whether symbolic links are followed that lead out of the source."""
    depth: int = 0
    """How many containers may lie in one another for their members to be taken; 0: those of none."""
    max_bytes: int = 1 << 30
    """Larger members are not read."""
    max_ratio: float = 200.0
    """How many bytes a container may give for each of its own, beyond the first 64 MiB."""
    max_expanded: int = 1 << 40
    """How many bytes a container may give."""
    slides: bool = False
    """Whether slides are read, whose suffixes no other image has."""


def junk(parts: Sequence[str]) -> str:
    """What operating systems leave beside files, as a kind to be skipped; empty for anything else.

    parts: of a path, the name last.
    """
    if "__MACOSX" in parts or parts[-1].startswith("._"):
        return "AppleDouble"
    return parts[-1] if parts[-1] in JUNK else ""


def may_be_image(name: str) -> bool:
    """Whether a file of that name is read to see whether it is an image."""
    return suffix_of(name) in IMAGE_SUFFIXES or _OF_DICOM.fullmatch(name) is not None


def begins_as_dicom(data: bytes) -> bool:
    """Whether a file is DICOM by its first `DICOM_PREFIX` bytes: on media, such files have names that say nothing."""
    return data[128:DICOM_PREFIX] == b"DICM"


def is_named_image(name: str) -> bool:
    """Whether a file's name says that it is an image, so that anything else in it is a fault."""
    return suffix_of(name) in IMAGE_SUFFIXES | SLIDE_SUFFIXES


def kind_by_name(parts: Sequence[str], options: SourceOptions) -> str:
    """Why a file is skipped, as its path says, the name last; empty for what may be an image or a container."""
    if kind := junk(parts):
        return kind
    for pattern in options.leave_out:
        if fnmatchcase(parts[-1], pattern):
            return pattern
    if options.slides and suffix_of(parts[-1]) in SLIDE_SUFFIXES:
        return ""
    if may_be_image(parts[-1]) or (options.depth and container_suffix(parts[-1])):
        return ""
    return suffix_kind(parts[-1])


def container_suffix(name: str) -> str:
    """Of a container's name, which of `CONTAINER_SUFFIXES` it has; empty for anything else."""
    small = name.lower()
    if not small.endswith(CONTAINER_SUFFIXES):  # nearly always
        return ""
    return next(suffix for suffix in CONTAINER_SUFFIXES if small.endswith(suffix))


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
