"""Parts: what workers make of chunks of the listing. A part that is there is done, and is never made again.

OUT.partial/parts/DIGEST/images.bin      the encoded images, one after another
OUT.partial/parts/DIGEST/rows.arrow      a row an image, or a row for an entry that gave none

The digest is of the chunk's entries and of the options that change what is made of them: whoever makes the part, now or
after a kill, here or on another machine, gives it the same name. A part in which entries could not be read has a name
that ends in `.unreadable`, and is made again by the next run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fastfgssl import __version__
from fastfgssl.archive.building.confinement import limit_memory, quiet
from fastfgssl.archive.building.previews import keep_few, preview_of
from fastfgssl.archive.building.worker import Watch, expect_workers
from fastfgssl.archive.images.decoded import FileSettings, images_of
from fastfgssl.archive.images.training_decoder import TrainingDecoder
from fastfgssl.archive.listing import Listing
from fastfgssl.archive.outcome import Facts, NoImage, PreparedImage, UnknownFormat, Unusable
from fastfgssl.archive.sources.base import Entry, Source, is_named_image
from fastfgssl.runtime.files import sync_folder
from fastfgssl.runtime.patience import PAUSES

UNREADABLE = ".unreadable"
IMAGES, ROWS = "images.bin", "rows.arrow"
READING, DECODING = 0, 1  # stages of an entry
_FORMAT = 4  # of a part
_ENTRIES, _BYTES = 256, 16 << 20  # of a chunk, at most: large files take long, and workers should end together
_ENDS_CHUNK = 128  # one name in so many ends its chunk, so that a file that is added moves few of the others

FACT_TYPES = {
    "modality": pa.string(),
    "body_part": pa.string(),
    "manufacturer": pa.string(),
    "spacing_row": pa.float32(),
    "spacing_column": pa.float32(),
    "stored_bits": pa.int32(),
    "mpp": pa.float32(),
    "slide_level": pa.int32(),
    "slide_x": pa.int32(),
    "slide_y": pa.int32(),
}
assert tuple(FACT_TYPES) == Facts._fields
SCHEMA = pa.schema(
    [
        pa.field("entry", pa.uint16()),  # of the chunk
        pa.field("part", pa.string()),
        pa.field("outcome", pa.string()),  # image, filtered, quarantined, unreadable, skipped
        pa.field("reason", pa.string()),
        pa.field("offset", pa.uint64()),  # in images.bin
        pa.field("size", pa.uint64()),
        pa.field("format", pa.string()),
        pa.field("width", pa.uint32()),
        pa.field("height", pa.uint32()),
        pa.field("bit_depth", pa.uint8()),
        pa.field("low", pa.uint16()),
        pa.field("high", pa.uint16()),
        pa.field("crc32", pa.uint32()),
        pa.field("pixels", pa.binary(16)),
        pa.field("patient", pa.string()),
        pa.field("thumbnail", pa.binary()),  # int8 [D], where it is asked for; of no fixed size, or none would take it
        pa.field("preview", pa.binary()),  # JPEG, of a few pictures that are left out
        pa.field("changes", pa.list_(pa.string())),
        pa.field("notes", pa.list_(pa.string())),
        *(pa.field(name, type) for name, type in FACT_TYPES.items()),
    ]
)


class PartOptions(NamedTuple):
    """What a part depends on besides its entries."""

    file: FileSettings = FileSettings()
    max_bytes: int = 1 << 30
    """Larger files are quarantined unread."""
    max_seconds: float = 60.0
    """A worker that is at one file for longer is killed, and the file quarantined."""
    max_memory: int = 2 << 30
    """Bytes that a worker may take beyond what it has when it begins."""


class Chunk(NamedTuple):
    """Consecutive entries of one source."""

    digest: str
    source: int
    rows: np.ndarray
    """Of the listing."""
    entries: list[Entry]
    blamed: dict[int, tuple[str, str]] = {}  # noqa: RUF012 - never changed in place
    """Entries (by their number here) that have ended their workers: the outcome and the reason."""


class Part(NamedTuple):
    """A part that is done."""

    digest: str
    entries: int
    outcomes: Counter[str]
    """Of its rows."""
    example: str = ""
    """An entry that could not be read, and why."""


def chunks(listing: Listing, rows: np.ndarray, options: PartOptions) -> Iterator[Chunk]:
    """The listing's `rows`, ascending, as chunks: by a rule of the listing alone, so the same on every machine."""
    made_with = f"{__version__} {_FORMAT} {options!r}".encode()
    numbers: list[int] = []
    entries: list[Entry] = []
    size, current = 0, -1

    def chunk() -> Chunk:
        digest = hashlib.sha256(made_with + b"\0" + os.fsencode(listing.sources[current].name))
        for entry in entries:
            digest.update(b"%d %d %d %b\0" % (len(entry.name), entry.size, entry.version, entry.name))
        return Chunk(digest.hexdigest()[:40], current, np.array(numbers), entries)

    for of_batch, batch in listing.batches(rows):
        columns = (batch[name].to_pylist() for name in ("source", "name", "size", "version"))
        for row, source, name, bytes_, version in zip(of_batch.tolist(), *columns, strict=True):
            if entries and (source != current or len(entries) == _ENTRIES or size + bytes_ > _BYTES):
                yield chunk()
                numbers, entries, size = [], [], 0
            current = source
            numbers.append(row)
            entries.append(Entry(name, bytes_, version))
            size += bytes_
            if zlib.crc32(name) % _ENDS_CHUNK == 0:
                yield chunk()
                numbers, entries, size = [], [], 0
    if entries:
        yield chunk()


def read_part(folder: Path) -> pa.RecordBatch:
    """The rows of a part."""
    return pa.ipc.open_file((folder / ROWS).read_bytes()).get_batch(0)


def expect_part_makers() -> None:
    """Lets what parts are made with be imported already. Of no effect once there were other workers."""
    expect_workers(__name__, "nvidia.dali.fn")


class PartMaker:
    """Makes parts in `folder`: what a worker does. It is pickled before its first use."""

    def __init__(self, folder: Path, sources: Sequence[Source], options: PartOptions) -> None:
        self._folder, self._sources, self._options = folder, list(sources), options
        self._decoder: TrainingDecoder | None = None  # made in the worker

    def __call__(self, chunk: Chunk, watch: Watch) -> Part:
        """Makes the part of a chunk. Raises OSError if it cannot be written."""
        if self._decoder is None:
            self._decoder = _warm_decoder()
            limit_memory(self._options.max_memory)
        draft = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        with (draft / IMAGES).open("wb") as file, quiet():
            rows = self._rows(chunk, watch, file)
            file.flush()
            os.fsync(file.fileno())
        with (draft / ROWS).open("wb") as file:
            with pa.ipc.new_file(file, SCHEMA) as writer:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
            file.flush()
            os.fsync(file.fileno())
        return self._published(draft, _part(chunk, rows, self._sources[chunk.source]))

    def _published(self, draft: Path, part: Part) -> Part:
        old = self._folder / f"{part.digest}{UNREADABLE}"
        new = old if part.outcomes["unreadable"] else self._folder / part.digest
        sync_folder(draft)
        shutil.rmtree(old, ignore_errors=True)
        try:
            draft.rename(new)
        except OSError:
            if not new.is_dir():
                raise
            shutil.rmtree(draft)  # another machine was faster
        return part  # a name that a failing machine loses costs a chunk's work, and no more

    def _rows(self, chunk: Chunk, watch: Watch, file: Any) -> list[dict]:
        rows: list[list[dict]] = [[] for _ in chunk.entries]
        for number, (outcome, reason) in chunk.blamed.items():
            rows[number] = [_left_out(number, outcome, reason)]
        for number, entry in enumerate(chunk.entries):
            if entry.size > (limit := self._options.max_bytes):
                why = f"too large: {entry.size} bytes, --max-bytes is {limit}"
                rows[number] = [_left_out(number, "quarantined", why)]
        for pause in (0.0, *PAUSES):
            unread = [number for number, made in enumerate(rows) if not made or made[0]["outcome"] == "unreadable"]
            unread = [number for number in unread if number not in chunk.blamed]
            if not unread:
                break
            time.sleep(pause)
            read = self._sources[chunk.source].read([chunk.entries[number] for number in unread], watch.renew)
            for number in unread:
                watch.begin(number, READING)
                data = next(read)
                watch.begin(number, DECODING)
                if isinstance(data, OSError):
                    rows[number] = [_left_out(number, "unreadable", f"cannot be read: {data.strerror or data}")]
                elif isinstance(data, Unusable):
                    rows[number] = [_left_out(number, "quarantined", str(data))]
                else:
                    is_named = is_named_image(os.fsdecode(chunk.entries[number].name).rpartition("/")[2])
                    rows[number] = []
                    for row in self._images(number, is_named, data, file):
                        rows[number].append(row)
                        if self._options.file.slide.mpp:
                            watch.renew()  # a slide has thousands of tiles
            watch.rest()
        return keep_few([row for of_entry in rows for row in of_entry])

    def _images(self, entry: int, is_named: bool, data: bytes | list[bytes], file: Any) -> Iterator[dict]:
        """is_named: whether its name says that it is an image, not only that it might be one."""
        assert self._decoder is not None
        some = False
        try:
            for made in images_of(data, self._decoder, self._options.file):
                some = True
                if isinstance(made, UnknownFormat) and not is_named:
                    yield _left_out(entry, "skipped", "no image, by its first bytes")
                elif isinstance(made, Unusable):
                    yield _left_out(entry, made.outcome, str(made), made.part) | preview_of(made)
                else:
                    yield _image_row(entry, made, file)
        except NoImage as kind:
            some = True
            yield _left_out(entry, "skipped", str(kind))
        if not some:
            yield _left_out(entry, "quarantined", "no image in it")


def _image_row(entry: int, image: PreparedImage, file: Any) -> dict:
    row = {
        "entry": entry,
        "part": image.part,
        "outcome": "image",
        "offset": file.tell(),
        "size": len(image.data),
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "bit_depth": image.bit_depth,
        "low": image.levels[0],
        "high": image.levels[1],
        "crc32": zlib.crc32(image.data),
        "pixels": image.pixels,
        "patient": image.patient or None,
        "thumbnail": image.thumbnail or None,
        "changes": list(image.changes),
        "notes": list(image.notes),
    }
    file.write(image.data)
    return row | (image.facts._asdict() if image.facts else {})


def _left_out(entry: int, outcome: str, reason: str, part: str = "") -> dict:
    return {"entry": entry, "part": part, "outcome": outcome, "reason": " ".join(reason.split())}


def _part(chunk: Chunk, rows: list[dict], source: Source) -> Part:
    unread = next((row for row in rows if row["outcome"] == "unreadable"), None)
    example = f"{source.where(chunk.entries[unread['entry']].name)}: {unread['reason']}" if unread else ""
    return Part(chunk.digest, len(chunk.entries), Counter(row["outcome"] for row in rows), example)


def _warm_decoder() -> TrainingDecoder:
    """One that has taken the memory which it needs for every image."""
    decoder = TrainingDecoder()
    pixel = b"BM:\0\0\0\0\0\0\0006\0\0\0(\0\0\0\1\0\0\0\1\0\0\0\1\0\x18" + bytes(30)
    for dtype in (np.uint8, np.uint16):
        decoder.decode(pixel, dtype)
    return decoder
