"""What is in a tar, read forwards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, cast

from fastfgssl.archive.sources.streams import LINK, PIECE, Damaged, Member, Window, exactly, format_errors

_MOST_HEADERS = 1 << 20  # bytes of a member's extended header: a name is never so long
_MOST_DIGITS = 19  # of a size: 8 EiB


def tar_members(
    stream: BinaryIO, *, seeks: bool, spend: Callable[[int], object], alive: Callable[[], object]
) -> Iterator[Member]:
    """The members of a tar but its folders, in their order.

    seeks: whether to seek in `stream` costs nothing. spend: called with the number of bytes that are about to be read.
    Raises Damaged, or one of `format_errors()`.
    """
    at, end = 0, stream.seek(0, io.SEEK_END) if seeks else 0
    name, size = b"", -1  # of the next member, as an extended header says
    sparse = False
    while True:
        if seeks:
            stream.seek(at)
        header = exactly(stream, tarfile.BLOCKSIZE, "it ends without an end mark: is it cut off?")
        spend(tarfile.BLOCKSIZE)
        at += tarfile.BLOCKSIZE
        if not header.strip(b"\0"):
            while not seeks and (piece := stream.read(PIECE)):  # so that a checksum at its end is compared
                spend(len(piece))
                alive()
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "latin-1", "strict")  # of which every byte is a letter
        except tarfile.HeaderError as error:
            raise Damaged(f"no header of a tar where one must be: {error}") from None
        if info.size < 0:
            raise Damaged("a header says a negative size")
        extended = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"x", b"X", b"g")
        if extended:
            if info.size > _MOST_HEADERS:
                raise Damaged(f"an extended header of {info.size} bytes")
            spend(_padded(info.size))
            data = exactly(stream, _padded(info.size), "it is cut off")[: info.size]
            at += _padded(info.size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = data.rstrip(b"\0")
            elif info.type in (b"x", b"X"):
                records = _pax_records(data)
                name = records.get(b"path", name)
                digits = records.get(b"size", b"")
                if len(digits) > _MOST_DIGITS:
                    raise Damaged(f"a header says a size of {len(digits)} digits")
                size = int(digits) if digits.isdigit() else size
                sparse = any(key.startswith(b"GNU.sparse.") for key in records)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            sparse, more = True, header[482]
            while more:
                spend(tarfile.BLOCKSIZE)
                more = exactly(stream, tarfile.BLOCKSIZE, "it is cut off")[504]
                at += tarfile.BLOCKSIZE
        has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        length = (size if size >= 0 else info.size) if has_data else 0
        found = name or info.name.encode("latin-1")
        if seeks and at + length > end:
            raise Damaged("it is cut off in a member")
        spend(_padded(length))
        bytes_ = _Forwards(stream, length)
        reader = Window(stream, at, length) if seeks else bytes_
        if not (info.isdir() or found.endswith(b"/")):
            kind = "" if has_data else LINK if info.islnk() or info.issym() else "not a regular file"
            cannot = "a sparse member of a tar" if sparse else ""
            yield Member(found, length, partial(cast, BinaryIO, reader), kind, cannot)
        at += _padded(length)
        if not seeks:
            _pass(stream, bytes_.left + _padded(length) - length, alive)
        name, size, sparse = b"", -1, False


class _Forwards(io.RawIOBase):
    """The next bytes of a stream, and no more of them than a member has."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self.left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self.left)) if self.left else b""
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """The key and value of each record `LENGTH KEY=VALUE\\n` of an extended header."""
    records = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not (space and length.isdigit() and len(length) < 8 and len(length) + 1 < int(length) <= len(data)):
            break
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key] = value
        data = data[int(length) :]
    return records


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _pass(stream: BinaryIO, size: int, alive: Callable[[], object]) -> None:
    """Reads over the rest of a member."""
    errors: tuple[type[Exception], ...] = (Damaged, *format_errors())
    try:
        while size:
            piece = stream.read(min(size, PIECE))
            if not piece:
                raise Damaged("it is cut off in a member", within=True)
            size -= len(piece)
            alive()
    except errors as error:
        raise Damaged(str(error) or "it is cut off in a member", within=True) from None
