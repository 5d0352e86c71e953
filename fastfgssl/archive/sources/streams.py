"""Streams of bytes within containers, and what is said of a member: what zips and tars have in common.

Neither `zipfile` nor `tarfile` is used to read them: they refuse a whole container for one name that is no UTF-8 or an
end that is missing, take headers of any size into memory, and keep an object a member.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO, NamedTuple, cast

from fastfgssl.runtime.errors import UserError

PIECE = 1 << 20  # bytes that are passed over at a time
_PACKED = 1 << 16  # bytes that are unpacked at a time
_WITH_GZIP_HEADER = 16 + zlib.MAX_WBITS
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
        return cast(BinaryIO, io.BufferedReader(_Gunzipped(file)))
    if suffix in (".tar.zst", ".tzst"):
        return zstandard_stream(file)
    return file


@cache
def format_errors() -> tuple[type[Exception], ...]:
    """What decompressors raise of bytes that are not theirs."""
    known: tuple[type[Exception], ...] = (zlib.error, EOFError, struct.error)
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


class _Gunzipped(io.RawIOBase):
    """What a gzip file gives, of one member or several, whose checksums are compared.

    Behind a buffer, a small read costs a fifth of one from `gzip.GzipFile`: tars are read header by header.
    """

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._rest = packed, b""
        self._inflate = self._member(packed.read(_PACKED))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self._inflate.eof and not self._next():
                return 0
            piece = self._rest or self._packed.read(_PACKED)
            data = self._inflate.decompress(piece, len(buffer))
            self._rest = self._inflate.unconsumed_tail
            if not piece and not data and not self._inflate.eof:
                raise EOFError("it is cut off")
        buffer[: len(data)] = data
        return len(data)

    def _next(self) -> bool:
        """Begins with the next member, if there is one; zeros may stand before it, and at the end."""
        rest = self._inflate.unused_data.lstrip(b"\0")
        while not rest and (piece := self._packed.read(_PACKED)):
            rest = piece.lstrip(b"\0")
        if rest:
            self._inflate = self._member(rest)
        return bool(rest)

    def _member(self, rest: bytes) -> Any:
        if rest[:1] not in (b"", b"\x1f"):
            raise Damaged(f"it is no gzip file where one must be: {rest[:8]!r}")
        self._rest = rest
        return zlib.decompressobj(_WITH_GZIP_HEADER)


def exactly(stream: BinaryIO, size: int, otherwise: str) -> bytes:
    """The next `size` bytes. Raises Damaged, which says `otherwise`, if there are fewer."""
    data = b""
    while len(data) < size and (piece := stream.read(size - len(data))):
        data += piece
    if len(data) < size:
        raise Damaged(otherwise)
    return data
