"""What lies in the sources, as columns: a row an entry, in the order of the sources and within each in its own.

Arrow columns, in memory or in a file that is mapped: a million entries cost no million Python objects.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.sources.base import Entry, Source, SourceOptions, display
from fastfgssl.archive.sources.folder import read_file
from fastfgssl.archive.sources.opening import open_sources
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.signals import signals_wait

SCHEMA = pa.schema(
    [
        pa.field("source", pa.uint32(), nullable=False),
        pa.field("name", pa.large_binary(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("damaged", pa.bool_(), nullable=False),  # of no use, though it should have been read: kind says why
        pa.field("kind", pa.dictionary(pa.int32(), pa.string())),  # of what is skipped; null for what may be an image
    ]
)
_ROWS = 1 << 14  # of a batch
with signals_wait():  # at its first array, Arrow looks for pandas, and takes a signal meanwhile for its absence
    pa.array([0])
_SHOWN = 5


class ImageFile(NamedTuple):
    """One image file that was found."""

    name: str
    """Path relative to its source, with `/`; if there are several sources, after the source's name. Valid UTF-8."""
    path: str
    """Where it lies: absolute, as the file system spells it."""

    def read(self) -> bytes:
        """The file's bytes. Raises OSError, also for what is no file."""
        return read_file(self.path)

    def __str__(self) -> str:
        return self.path


class Listing:
    """All entries of the sources, numbered from 0 (rows)."""

    sources: list[Source]
    roots: list[Path]
    """The folders that names are relative to, each once, absolute and without symbolic links."""
    tables: list[Path]
    """CSV files among the entries, absolute, but no members of containers and nothing remote."""
    images: np.ndarray
    """Rows of what may be an image, int64, ascending."""
    other_files: Counter[str]
    """Entries that are none, by the kind of thing that they are."""
    damaged: Counter[str]
    """Entries that should have been images or hold some, by why they are of no use."""

    def __init__(self, sources: Sequence[Source], table: pa.Table) -> None:
        self.sources = list(sources)
        self.roots = list(dict.fromkeys(source.root for source in sources))
        self.table = table
        kinds = table["kind"]
        self.images = np.flatnonzero(pc.is_null(kinds).to_numpy())
        self.other_files = _counted(kinds.filter(pc.invert(table["damaged"])))
        self.damaged = _counted(kinds.filter(table["damaged"]))
        csv = np.flatnonzero(pc.fill_null(pc.equal(kinds.cast(pa.string()), ".csv"), False).to_numpy())
        self.tables = [Path(path) for path in self.places(csv) if "!/" not in path and "://" not in path]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def entries(self) -> Sequence[ImageFile]:
        """The images, made as they are asked for."""
        return _Images(self)

    def where(self, row: int) -> str:
        """Where an entry lies."""
        return next(self.places(np.array([row])))

    def places(self, rows: np.ndarray) -> Iterator[str]:
        """Where each of some entries lies."""
        columns = (self.table[name].take(pa.array(rows)).to_pylist() for name in ("source", "name"))
        for source, name in zip(*columns, strict=True):
            yield self.sources[source].where(name)

    def shown(self, source: int, name: bytes) -> str:
        """An entry's name, told apart from those of other sources."""
        return display(f"{self.sources[source].name}/".encode() + name if len(self.sources) > 1 else name)

    def batches(self, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        """The table in parts, with the numbers of their rows: all of it, or only `rows`, ascending."""
        first = 0
        for batch in self.table.to_batches():
            if rows is None:
                yield np.arange(first, first + len(batch)), batch
            else:
                begin, end = np.searchsorted(rows, (first, first + len(batch)))
                if begin < end:
                    yield rows[begin:end], batch.take(pa.array(rows[begin:end] - first))
            first += len(batch)


class _Images(Sequence[ImageFile]):
    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    def __len__(self) -> int:
        return len(self._listing.images)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageFile]: ...
    def __getitem__(self, index: int | slice) -> ImageFile | Sequence[ImageFile]:
        if isinstance(index, slice):
            return list(self._of(self._listing.images[index]))
        return next(self._of(self._listing.images[[index]]))

    def __iter__(self) -> Iterator[ImageFile]:
        return self._of(self._listing.images)

    def _of(self, rows: np.ndarray) -> Iterator[ImageFile]:
        for _, batch in self._listing.batches(rows):
            for number, name in zip(batch["source"].to_pylist(), batch["name"].to_pylist(), strict=True):
                yield ImageFile(self._listing.shown(number, name), self._listing.sources[number].where(name))


def find_images(
    paths: Sequence[Path | str],
    options: SourceOptions | None = None,
    *,
    lists: Sequence[Path] = (),
    advice: str = "",
    file: Path | None = None,
) -> Listing:
    """Lists the sources at `paths`, which are folders, read recursively, files or URLs, and the files in `lists`.

    advice: where images come from, for the message that there is none. file: where the listing is kept, rather than in
    memory.
    Raises UserError if a source or a folder below it cannot be read, if sources overlap, if two entries would have the
    same name, or if there is no image at all.
    """
    sources = open_sources(paths, lists, options)
    memory = io.BytesIO()
    deltas = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with file.open("wb") if file else nullcontext(memory) as sink, pa.ipc.new_file(sink, SCHEMA, options=deltas) as out:
        kinds = {"": 0}  # never empty: Arrow writes no delta to a dictionary of nothing
        for batch in _batches(sources, kinds):
            out.write_batch(batch)
    stored = pa.memory_map(os.fsencode(file)) if file else pa.BufferReader(memory.getvalue())
    listing = Listing(sources, pa.ipc.open_file(stored).read_all())
    if not len(listing.images):
        counts = listing.other_files + listing.damaged
        others = ", ".join(f"{count} x {kind}" for kind, count in counts.most_common(_SHOWN))
        seen = f"only {others}" if others else "nor any other files"
        then = f"; {advice}" if advice else ""
        raise UserError(f"no images below {', '.join(map(str, (*paths, *lists)))}, {seen}{then}")
    _check_unique(listing)
    return listing


def _counted(kinds: pa.ChunkedArray) -> Counter[str]:
    counts = pc.value_counts(kinds.drop_null().cast(pa.string())).to_pylist()
    return Counter({item["values"]: item["counts"] for item in counts})


def _batches(sources: Sequence[Source], kinds: dict[str, int]) -> Iterator[pa.RecordBatch]:
    entries: list[Entry] = []
    for number, source in enumerate(sources):
        found = source.entries()
        while True:
            try:
                entry = next(found, None)
            except OSError as error:
                raise UserError(f"cannot list {source.where(b'')}: {error.strerror or error}") from error
            if entry is None:
                break
            entries.append(entry)
            if len(entries) == _ROWS:
                yield _batch(number, entries, kinds)
                entries = []
        if entries:
            yield _batch(number, entries, kinds)
            entries = []


def _batch(source: int, entries: list[Entry], kinds: dict[str, int]) -> pa.RecordBatch:
    codes = [kinds.setdefault(entry.skip, len(kinds)) if entry.skip else None for entry in entries]
    columns = [
        pa.array(np.full(len(entries), source), pa.uint32()),
        pa.array([entry.name for entry in entries], pa.large_binary()),
        pa.array([entry.size for entry in entries], pa.int64()),
        pa.array([entry.version for entry in entries], pa.int64()),
        pa.array([entry.damaged for entry in entries], pa.bool_()),
        pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(list(kinds), pa.string())),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def _check_unique(listing: Listing) -> None:
    """Two sources may have the same name; what is in them must not, or nothing would tell it apart."""
    same_name = {name for name, count in Counter(source.name for source in listing.sources).items() if count > 1}
    numbers = [number for number, source in enumerate(listing.sources) if source.name in same_name]
    if not numbers:
        return
    seen: dict[tuple[str, bytes], int] = {}
    rows = listing.images[np.isin(listing.table["source"].to_numpy()[listing.images], numbers)]
    for of_batch, batch in listing.batches(rows):
        for row, number, name in zip(
            of_batch.tolist(), *(batch[c].to_pylist() for c in ("source", "name")), strict=True
        ):
            first = seen.setdefault((listing.sources[number].name, name), row)
            if first != row:
                raise UserError(
                    f"two images would have the name {listing.shown(number, name)}: {listing.where(first)} and"
                    f" {listing.where(row)}; rename a source, or give the folder above both as the only source"
                )
