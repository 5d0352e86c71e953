"""Containers among files: the members of zips and tars are entries of their own, `scans.zip!/a/1.dcm`.

They are read as streams and never unpacked to a disk. A compressed tar can only be read forwards: who reads keeps its
place in it, so that one pass serves all that is asked for in order.
"""

from __future__ import annotations

import io
import os
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fastfgssl.archive.outcome import NEEDS_MEMORY, Unusable
from fastfgssl.archive.sources.base import (
    DICOM_PREFIX,
    UNKNOWN,
    Contents,
    Entry,
    FileSource,
    SourceOptions,
    begins_as_dicom,
    container_suffix,
    kind_by_name,
    nothing,
)
from fastfgssl.archive.sources.names import LONGEST_NAME, WITHIN, Names, container_of, parent_of, plain, told_apart
from fastfgssl.archive.sources.streams import Damaged, Member, Window, format_errors, stream_of
from fastfgssl.archive.sources.tars import tar_members
from fastfgssl.archive.sources.zips import zip_members
from fastfgssl.runtime.errors import in_a_line
from fastfgssl.runtime.patience import PAUSES

_FREE = 64 << 20  # bytes that any container may give, however small it is


class Found(NamedTuple):
    """What a walk through a container comes to."""

    entry: Entry
    open: Callable[[], BinaryIO] | None = None
    """Its bytes, to be read forwards before the walk goes on; also of an entry that is skipped as `UNKNOWN`."""
    crc: int | None = None
    lost: bool = False
    """Of a damage: whether the bytes of the member before it are not all there."""


class WithContainers:
    """A source of files in which the members of containers stand for them."""

    def __init__(self, files: FileSource, options: SourceOptions) -> None:
        self.files, self._options = files, options
        self._walk: _Walk | None = None  # of the container that was read last

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def root(self) -> Path:
        only = self.files.only
        if only is not None and container_suffix(os.fsdecode(only)):
            return self.files.root / f"{os.fsdecode(only)}!"
        return self.files.root

    def where(self, name: bytes) -> str:
        return self.files.where(name)

    def entries(self) -> Iterator[Entry]:
        for entry in self.files.entries():
            if container_of(entry.name) not in (None, entry.name):
                why = entry.skip or "ambiguous name: it is that of a container's member"
                yield Entry(told_apart(entry.name), 0, 0, why, entry.damaged or not entry.skip)
            elif entry.skip or not container_suffix(os.fsdecode(entry.name)):
                yield entry
            else:
                yield from self._members(entry)

    def read(
        self, entries: Sequence[Entry], alive: Callable[[], object] = nothing
    ) -> Iterator[Contents | OSError | Unusable]:
        for container, group in groupby(entries, key=lambda entry: container_of(entry.name)):
            if container is None:
                yield from self.files.read(list(group), alive)
                continue
            for entry in group:
                try:
                    yield self._read(container, entry, alive)
                except OSError as error:
                    self._walk = None  # what is asked for again, is behind
                    yield error
                except Damaged as damage:
                    yield Unusable(f"damaged container: {damage}")
                except MemoryError:
                    self._walk = None
                    yield Unusable(NEEDS_MEMORY)

    def _members(self, container: Entry) -> Iterator[Entry]:
        """What is in a container; the container itself, to be accounted for as unreadable, where it cannot be read."""
        done = 0
        for pause in (0.0, *PAUSES):
            time.sleep(pause)
            try:
                with closing(self._listed(container)) as found:
                    for number, entry in enumerate(found):
                        if number >= done:
                            yield entry
                            done += 1
                return
            except OSError:
                continue
        yield Entry(container.name, 0, container.version)

    def _listed(self, container: Entry) -> Generator[Entry, None, None]:
        held = None
        walk = _Walk(self.files, container, self._options)
        try:
            for found in walk:
                lost = found.lost and held and parent_of(held.name) == found.entry.name and not held.damaged
                if held and not lost:
                    yield held
                held = _by_its_bytes(found)
            if held:
                yield held
        finally:
            walk.close()

    def _read(self, container: bytes, entry: Entry, alive: Callable[[], object]) -> bytes:
        if entry.name == container:
            raise OSError(None, "what is in it could not be listed")
        found = self._find(container, entry, alive)
        try:
            if found is None or found.open is None:
                raise OSError(None, "its container is no longer what it was")
            limit = self._options.max_bytes
            data = _all(found.open(), min(limit, entry.size) + 1)
        except format_errors() as error:
            raise Damaged(in_a_line(error)) from None
        if len(data) != entry.size:
            raise Damaged(f"{len(data)} bytes where its header says {entry.size}")
        if found.crc is not None and zlib.crc32(data) != found.crc:
            raise Damaged("a member's checksum is another than its bytes'")
        return data

    def _find(self, container: bytes, entry: Entry, alive: Callable[[], object]) -> Found | None:
        """A member: further on from where the walk is, or from the start."""
        for fresh in (False, True):
            if fresh or self._walk is None or self._walk.container != (container, entry.version):
                if self._walk:
                    self._walk.close()
                self._walk = _Walk(self.files, Entry(container, -1, entry.version), self._options)
            self._walk.alive, self._walk.wanted = alive, entry.name
            for found in self._walk:
                if found.entry.name == entry.name:
                    return found
        return None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_walk": None}


class _Budget:
    """How many bytes may yet come out of a container, with all that lie in it."""

    def __init__(self, size: int, options: SourceOptions) -> None:
        by_ratio = max(_FREE, int(options.max_ratio * max(size, 0)))
        self.left = min(by_ratio, options.max_expanded)
        self._why = f"--max-ratio {options.max_ratio:g} times its size"
        if options.max_expanded <= by_ratio:
            self._why = f"--max-expanded {options.max_expanded} bytes"

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Damaged(f"it gives more than {self._why}: is it a bomb?")


class _Walk(Iterator[Found]):
    """Through a container of a source, and through those that lie in it."""

    def __init__(self, files: FileSource, container: Entry, options: SourceOptions) -> None:
        self.container = container.name, container.version
        self.wanted: bytes | None = None
        """The name that is looked for: containers that cannot hold it are passed over."""
        self.alive: Callable[[], object] = nothing
        self._options = options
        self._files = files
        self._spend: Callable[[int], object] = lambda size: None
        self._found = self._whole()

    def __next__(self) -> Found:
        return next(self._found)

    def close(self) -> None:
        self._found.close()

    def _whole(self) -> Generator[Found, None, None]:
        with self._files.open(self.container[0]) as file:
            # who reads has a budget too: what was listed may have been exchanged since
            self._spend = _Budget(file.seek(0, io.SEEK_END), self._options).spend
            file.seek(0)
            suffix = container_suffix(os.fsdecode(self.container[0]))
            yield from self._within(self.container[0], suffix, file, True, 1)

    def _within(self, name: bytes, kind: str, file: BinaryIO, seeks: bool, depth: int) -> Iterator[Found]:
        version, seen = self.container[1], Names()
        try:
            for member in self._members(kind, file, seeks):
                own = plain(member.name)
                path = name + WITHIN + seen.unique(told_apart(own[:LONGEST_NAME]))
                parts = os.fsdecode(own).split("/")
                suffix = container_suffix(parts[-1])
                skip = member.skip or kind_by_name(parts, self._options)
                too_long = f"name too long: {len(own)} bytes" if len(own) > LONGEST_NAME else ""
                if skip in UNKNOWN and not member.unusable and not too_long:
                    yield Found(Entry(path, member.size, version, skip), member.open, member.crc)
                elif skip or member.unusable or too_long:
                    why = skip or member.unusable or too_long
                    yield Found(Entry(path, member.size, version, why, not skip))
                elif suffix and depth >= self._options.depth:
                    yield Found(Entry(path, member.size, version, f"{suffix} below --nested"))
                elif not suffix:
                    yield Found(Entry(path, member.size, version), member.open, member.crc)
                elif self.wanted is None or self.wanted.startswith(path + WITHIN):
                    yield from self._nested(path, member, suffix, depth)
        except Damaged as damage:
            yield Found(_damage(name, version, str(damage)), lost=damage.within)
        except format_errors() as error:
            yield Found(_damage(name, version, in_a_line(error)))

    def _nested(self, path: bytes, member: Member, suffix: str, depth: int) -> Iterator[Found]:
        stream = member.open()
        seeks = isinstance(stream, Window)
        if suffix == ".zip" and not seeks:  # its directory is at its end
            limit = self._options.max_bytes
            if member.size > limit:
                why = f"{member.size} bytes in another that is compressed, --max-bytes is {limit}"
                yield Found(_damage(path, self.container[1], why))
                return
            stream, seeks = io.BytesIO(_all(stream, limit)), True
        yield from self._within(path, suffix, stream, seeks, depth + 1)

    def _members(self, suffix: str, file: BinaryIO, seeks: bool) -> Iterator[Member]:
        if suffix == ".zip":
            return zip_members(file, spend=self._spend, alive=self._live)
        stream = stream_of(suffix, file)
        return tar_members(stream, seeks=seeks and stream is file, spend=self._spend, alive=self._live)

    def _live(self) -> None:
        self.alive()


def _by_its_bytes(found: Found) -> Entry:
    """The entry of a member; where its name does not tell what it is, its first bytes do."""
    if found.entry.skip in UNKNOWN and found.open is not None:
        with suppress(Damaged, *format_errors()):  # which going on tells, if it hurts others too
            if begins_as_dicom(_all(found.open(), DICOM_PREFIX)):
                return found.entry._replace(skip="")
    return found.entry


def _damage(name: bytes, version: int, why: str) -> Entry:
    return Entry(name, 0, version, f"damaged container: {why}", True)


def _all(stream: BinaryIO, limit: int) -> bytes:
    pieces, size = [], 0
    while size < limit and (piece := stream.read(min(limit - size, 1 << 20))):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
