"""Streams of bytes within containers, and what is said of a member: what zips and tars have in common.

Neither `zipfile` nor `tarfile` is used to read them: they refuse a whole container for one name that is no UTF-8 or an
end that is missing, take headers of any size into memory, and keep an object a member.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, cast

from fastfgssl.runtime.errors import UserError

PIECE = 1 << 20  # bytes that are passed over at a time
LINK = "link in a container"


class Damaged(Exception):
    """A container that cannot be read further; its text says why."""

    def __init__(self, why: str, *, within: bool = False) -> None:
        super().__init__(why)
        self.within = within
        """Whether it is the member that came last whose bytes are not all there."""


class Member(NamedTuple):
    """A member of a container."""

    name: bytes
    """As it is spelled there, whatever the encoding."""
    size: int
    """Bytes, as its header says."""
    open: Callable[[], BinaryIO]
    """Its bytes, to be read forwards; of a tar, before the next member is asked for."""
    skip: str = ""
    """Why it holds no file: the kind of thing that it is."""
    unusable: str = ""
    """Why its bytes cannot be had."""
    crc: int | None = None
    """CRC-32 of its bytes, where its container tells."""


class Window(io.RawIOBase):
    """A part of a file that can be sought in."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(wanted) or b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def stream_of(suffix: str, file: BinaryIO) -> BinaryIO:
    """The bytes of a tar from the file of a container with one of `CONTAINER_SUFFIXES`."""
    if suffix in (".tar.gz", ".tgz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    if suffix in (".tar.zst", ".tzst"):
        return zstandard_stream(file)
    return file


def format_errors() -> tuple[type[Exception], ...]:
    """What decompressors raise of bytes that are not theirs."""
    known: tuple[type[Exception], ...] = (zlib.error, gzip.BadGzipFile, EOFError, struct.error)
    try:
        import zstandard
    except ImportError:
        return known
    return (*known, zstandard.ZstdError)


def zstandard_stream(file: BinaryIO) -> BinaryIO:
    try:
        import zstandard
    except ImportError:
        raise UserError("a container is compressed by Zstandard: pip install 'fastfgssl[zstd]' to read it") from None
    return cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False))


def exactly(stream: BinaryIO, size: int, otherwise: str) -> bytes:
    """The next `size` bytes. Raises Damaged, which says `otherwise`, if there are fewer."""
    data = b""
    while len(data) < size and (piece := stream.read(size - len(data))):
        data += piece
    if len(data) < size:
        raise Damaged(otherwise)
    return data
