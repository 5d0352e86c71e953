"""What is in a zip: by its directory, or, where that is damaged, by what stands before each member."""

from __future__ import annotations

import bz2
import io
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from fastfgssl.archive.sources.streams import LINK, PIECE, Damaged, Member, Window, exactly, zstandard_stream

# of a zip: end of its directory, the same for more than 4 GiB, the locator of that, a member there, and at its data
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL, _FULL_16 = 0xFFFFFFFF, 0xFFFF
_ENCRYPTED, _SIZE_FOLLOWS = 1 << 0, 1 << 3
_STORED, _DEFLATED, _BZIP2, _ZSTANDARD = 0, 8, 12, 93
_LARGEST_DIRECTORY = 1 << 30  # bytes, of some ten million members


def zip_members(file: BinaryIO, *, spend: Callable[[int], object], alive: Callable[[], object]) -> Iterator[Member]:
    """The members of a zip but its folders, by the bytes of their names: those that its directory has.

    If that is damaged, those that are found from the start, and Damaged is raised after them.
    """
    damage, end = None, file.seek(0, io.SEEK_END)
    try:
        directory, shift = _directory(file)
        places = _places(directory)
    except (Damaged, struct.error) as error:
        damage = error if isinstance(error, Damaged) else Damaged("its directory is cut off")
        directory, shift = b"".join(_from_start(file, spend, alive)), 0
        places = _places(directory)
    for place in places:
        (_, _, _, flags, method, _, _, crc, packed, size, length, more, _, _, _, attributes, start) = (
            _CENTRAL.unpack_from(directory, place)
        )
        at = place + _CENTRAL.size
        name, extra = bytes(directory[at : at + length]), bytes(directory[at + length : at + length + more])
        size, packed, start = _large(extra, size, packed, start)
        if name.endswith(b"/"):
            continue
        spend(size)
        opened = _ZipMember(file, start + shift, method, packed, end)
        cannot = ""
        if flags & _ENCRYPTED:
            cannot = "encrypted"
        elif method not in (_STORED, _DEFLATED, _BZIP2, _ZSTANDARD):
            cannot = f"compressed in a way that is not read: method {method}"
        is_link = attributes >> 16 & 0o170000 == 0o120000
        yield Member(name, size, opened.open, LINK if is_link else "", cannot, crc)
    if damage:
        raise damage


class _ZipMember(NamedTuple):
    file: BinaryIO
    start: int
    method: int
    packed: int
    end: int
    """Of the file."""

    def open(self) -> BinaryIO:
        _seek(self.file, self.start, self.end)
        header = exactly(self.file, _LOCAL.size, "it is cut off")
        signature, *_, length, more = _LOCAL.unpack(header)
        if signature != b"PK\3\4":
            raise Damaged("its directory leads to no member")
        window = Window(self.file, self.start + _LOCAL.size + length + more, self.packed)
        if self.method == _STORED:
            return cast(BinaryIO, window)
        raw = cast(BinaryIO, io.BufferedReader(window))
        if self.method == _DEFLATED:
            return cast(BinaryIO, io.BufferedReader(_Inflated(raw)))
        if self.method == _BZIP2:
            return cast(BinaryIO, io.BufferedReader(_Bunzipped(raw)))
        return zstandard_stream(raw)


def _seek(file: BinaryIO, place: int, end: int) -> None:
    """Raises Damaged for a place that is not in the file: seeking there raises what a failing disk does, and others."""
    if not 0 <= place <= end:
        raise Damaged("its directory leads out of it")
    file.seek(place)


def _directory(file: BinaryIO) -> tuple[bytes, int]:
    """The directory of a zip, and how far its places are from those in the file, which something may stand before."""
    end = file.seek(0, io.SEEK_END)
    start = max(0, end - (1 << 16) - _END.size - _LOCATOR.size)
    file.seek(start)
    tail = file.read(end - start)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise Damaged("it has no directory: is it cut off?")
    *_, count, size, offset, _ = _END.unpack_from(tail, at)
    after = start + at
    if at >= _LOCATOR.size and tail.startswith(b"PK\6\7", at - _LOCATOR.size):
        _, _, place, _ = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
        for after in (place, start + at - _LOCATOR.size - _END_64.size):
            _seek(file, after, end)
            record = file.read(_END_64.size)
            if record.startswith(b"PK\6\6") and len(record) == _END_64.size:
                break
        else:
            raise Damaged("its directory for large files is missing")
        *_, count, size, offset = _END_64.unpack(record)
    if size > after:
        raise Damaged("its directory is larger than the file")
    if size > _LARGEST_DIRECTORY:
        raise Damaged(f"a directory of {size} bytes")
    file.seek(after - size)
    directory = exactly(file, size, "its directory is cut off")
    if count and not directory.startswith(b"PK\1\2"):
        raise Damaged("its directory is not where it must be")
    return directory, after - size - offset


def _places(directory: bytes) -> list[int] | array:
    """Where in a directory its members are, by the bytes of their names."""
    places, at = array("Q"), 0
    while at < len(directory):
        (signature, *_, length, more, comment, _, _, _, _) = _CENTRAL.unpack_from(directory, at)
        if signature == b"PK\5\5":
            break  # a digital signature, which is its end
        if signature != b"PK\1\2":
            raise Damaged("its directory is damaged")
        places.append(at)
        at += _CENTRAL.size + length + more + comment
        if at > len(directory):
            raise Damaged("its directory is cut off")

    def name(place: int) -> bytes:
        (length,) = struct.unpack_from("<H", directory, place + 28)
        return directory[place + _CENTRAL.size : place + _CENTRAL.size + length]

    return array("Q", sorted(places, key=name))


def _from_start(file: BinaryIO, spend: Callable[[int], object], alive: Callable[[], object]) -> Iterator[bytes]:
    """A directory of the members that are whole, made of what stands before each."""
    end, at, made = file.seek(0, io.SEEK_END), 0, 0
    while made < _LARGEST_DIRECTORY:
        file.seek(at)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
            return
        _, needed, flags, method, time, date, crc, packed, size, length, more = _LOCAL.unpack(header)
        name, extra = file.read(length), file.read(more)
        size, packed, _ = _large(extra, size, packed, 0)
        data = at + _LOCAL.size + length + more
        if flags & _SIZE_FOLLOWS and not packed:
            if method != _DEFLATED or flags & _ENCRYPTED:
                return  # nothing tells where it ends
            inflated = _Inflated(cast(BinaryIO, io.BufferedReader(Window(file, data, end - data))))
            try:
                size = crc = 0
                while piece := inflated.read(PIECE):
                    size, crc = size + len(piece), zlib.crc32(piece, crc)
                    spend(len(piece))
                    alive()
            except (zlib.error, EOFError, Damaged):
                return
            packed = inflated.taken
        if data + packed > end:
            return
        large = struct.pack("<2H3Q", 1, 24, size, packed, at)
        numbers = (flags, method, time, date, crc, _FULL, _FULL, len(name), len(large), 0, 0, 0, 0, _FULL)
        made += _CENTRAL.size + len(name) + len(large)
        yield _CENTRAL.pack(b"PK\1\2", 0, needed, *numbers) + name + large
        at = data + packed
        if flags & _SIZE_FOLLOWS:  # a record of 12 to 24 bytes, and then perhaps a header
            file.seek(at)
            at += max(0, file.read(32).find(b"PK\3\4"))


def _large(extra: bytes, size: int, packed: int, start: int) -> tuple[int, int, int]:
    """Sizes and place of a member, of which those that need more than 32 bits stand in its extra field."""
    numbers = [size, packed, start]
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1:
            count = min(length, len(extra) - at) // 8
            values = iter(struct.unpack_from(f"<{count}Q", extra, at))
            numbers = [next(values, number) if number == _FULL else number for number in numbers]
        at += length
    return numbers[0], numbers[1], numbers[2]


class _Inflated(io.RawIOBase):
    """What a stream of raw deflate gives, a piece at a time."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._inflate = packed, zlib.decompressobj(-zlib.MAX_WBITS)
        self.taken = 0
        """Bytes of `packed` that it is made of, once it is at its end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self._inflate.eof:
            piece = self._inflate.unconsumed_tail or self._packed.read(1 << 16)
            self.taken += 0 if self._inflate.unconsumed_tail else len(piece)
            data = self._inflate.decompress(piece, len(buffer))
            if not piece and not data:
                raise EOFError("it is cut off")
            if self._inflate.eof:
                self.taken -= len(self._inflate.unused_data)
        buffer[: len(data)] = data
        return len(data)


class _Bunzipped(io.RawIOBase):
    """What a stream of bzip2 gives. `bz2.BZ2File` says of damaged bytes what a failing disk says, OSError."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._unpack = packed, bz2.BZ2Decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self._unpack.eof:
            piece = self._packed.read(1 << 16) if self._unpack.needs_input else b""
            if self._unpack.needs_input and not piece:
                raise EOFError("it is cut off")
            try:
                data = self._unpack.decompress(piece, len(buffer))
            except OSError as error:
                raise Damaged(f"bzip2: {error}") from None
        buffer[: len(data)] = data
        return len(data)
