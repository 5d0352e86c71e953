"""Writing an archive: tar shards with their indices, the table of samples, the manifest, all of it or nothing.

The same samples in the same order give the same bytes of every file: no name, time or owner of the machine gets in.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import pyarrow as pa

from fastfgssl.archive.lock import LOCK, lock_folder
from fastfgssl.archive.manifest import FORMAT, MANIFEST, QUARANTINE, SHARDS, TABLE, VERSION, read_manifest
from fastfgssl.runtime.errors import UserError

SHARD_BYTES = 256 << 20
EXTENSIONS = {"jpeg": "jpg", "png": "png", "tiff": "tif", "bmp": "bmp", "webp": "webp"}
BLOCK = 512  # of a tar file

COLUMNS = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("shard", pa.uint32(), nullable=False),
    pa.field("offset", pa.uint64(), nullable=False),
    pa.field("size", pa.uint64(), nullable=False),
    pa.field("width", pa.uint32(), nullable=False),
    pa.field("height", pa.uint32(), nullable=False),
    pa.field("crc32", pa.uint32(), nullable=False),
]
LABEL_COLUMNS = [pa.field("label", pa.int32()), pa.field("group", pa.int64()), pa.field("split", pa.string())]


class Sample(NamedTuple):
    """An image to write."""

    id: str
    data: bytes
    """The encoded image."""
    format: str
    """A key of `EXTENSIONS`."""
    width: int
    height: int
    """Pixels, as decoded."""
    bit_depth: int
    """8 or 16."""
    label: str | None = None
    """One of the writer's `classes`."""
    group: str | None = None
    """Written as a number: the name may be a patient's."""
    split: str | None = None


class ArchiveWriter:
    """Writes an archive beside `out`, in a folder that becomes `out` at `commit()` and goes away without it.

    A context manager. `classes` (sorted labels) is None for an archive without labels; a shard takes samples up to
    `shard_bytes` bytes of images, but at least one. Whatever hinders the writing, a full disk for one, is a UserError.
    """

    def __init__(
        self,
        out: Path,
        *,
        classes: list[str] | None = None,
        short_side: int | None = None,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
    ) -> None:
        self._out = out.resolve()
        self._partial = _beside(self._out, "partial")
        self._overwrite = overwrite
        self._classes = None if classes is None else {name: code for code, name in enumerate(classes)}
        self._groups: dict[str, int] = {}
        self._short_side = short_side
        self._shard_bytes = shard_bytes
        self._shard: _ShardWriter | None = None
        self._lock: IO
        self._shards: list[dict] = []
        self._rows: list[dict] = []
        self._samples = self._labelled = self._quarantined = 0
        self._bit_depth: Counter[str] = Counter({"8": 0, "16": 0})
        self._formats: Counter[str] = Counter()

    def __enter__(self) -> ArchiveWriter:
        check_output(self._out, self._overwrite)
        try:
            self._lock = lock_folder(self._partial)
            _clear(self._partial)  # of what a killed run left
            (self._partial / SHARDS).mkdir()
            self._table_file = _HashedFile(self._partial / TABLE)
            self._quarantine_file = (self._partial / QUARANTINE).open(
                "w", newline="", encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise UserError(f"cannot write {self._partial}: {error.strerror}") from error
        self._schema = pa.schema(COLUMNS if self._classes is None else COLUMNS + LABEL_COLUMNS)
        self._table = pa.ipc.new_file(self._table_file, self._schema)
        self._quarantine_csv = csv.writer(self._quarantine_file, lineterminator="\n")
        self._quarantine_csv.writerow(["id", "path", "reason"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._partial.exists():
            shutil.rmtree(self._partial)
        self._lock.close()
        if isinstance(error, OSError):
            raise UserError(f"cannot write the archive {self._out}: {error.strerror}") from error

    def add(self, sample: Sample) -> None:
        """Writes the next sample."""
        if self._shard is not None and self._shard.payload + len(sample.data) > self._shard_bytes:
            self._end_shard()
        if self._shard is None:
            self._shard = _ShardWriter(self._partial, len(self._shards))
        row = {
            "id": sample.id,
            "shard": len(self._shards),
            "offset": self._shard.add(f"{self._samples:09d}", EXTENSIONS[sample.format], sample.data),
            "size": len(sample.data),
            "width": sample.width,
            "height": sample.height,
            "crc32": zlib.crc32(sample.data),
        }
        if self._classes is not None:
            row["label"] = None if sample.label is None else self._classes[sample.label]
            row["group"] = None if sample.group is None else self._groups.setdefault(sample.group, len(self._groups))
            row["split"] = sample.split
            self._labelled += sample.label is not None
        self._rows.append(row)
        self._samples += 1
        self._bit_depth[str(sample.bit_depth)] += 1
        self._formats[sample.format] += 1

    def quarantine(self, id: str, path: str, reason: str) -> None:
        """Lists an image that is left out: the file `path`, for `reason`."""
        self._quarantine_csv.writerow([id, path, reason])
        self._quarantined += 1

    def commit(self) -> dict:
        """Completes the archive, moves it to its place and returns its manifest.

        Raises UserError if no sample was added; the list of the quarantined is then kept beside `out`.
        """
        self._quarantine_file.close()
        if not self._samples:
            kept = self._out.with_name(f"{self._out.name}.{QUARANTINE}")
            (self._partial / QUARANTINE).replace(kept)
            raise UserError(f"none of the {self._quarantined} images is usable; {kept} says why")
        self._end_shard()
        self._table.close()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "samples": self._samples,
            "shards": self._shards,
            "table": {"name": TABLE, **self._table_file.close()},
            "classes": None if self._classes is None else list(self._classes),
            "labelled": self._labelled,
            "groups": len(self._groups),
            "quarantined": self._quarantined,
            "bit_depth": self._bit_depth,
            "formats": self._formats,
            "short_side": self._short_side,
        }
        (self._partial / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        self._publish()
        (self._out / LOCK).unlink()
        return manifest

    def _end_shard(self) -> None:
        assert self._shard is not None
        self._shards.append(self._shard.finish())
        self._shard = None
        self._table.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def _publish(self) -> None:
        for path in self._partial.rglob("*.*"):  # every file: a rename may reach the disk before the bytes do
            with path.open("rb") as file:
                os.fsync(file)
        check_output(self._out, self._overwrite)  # again: hours may have passed
        replaced = _beside(self._out, "replaced")
        if replaced.exists():  # left by a run that was killed
            shutil.rmtree(replaced)
        if not self._out.exists():
            self._partial.rename(self._out)
            return
        self._out.rename(replaced)
        try:
            self._partial.rename(self._out)
        except BaseException:
            replaced.rename(self._out)
            raise
        shutil.rmtree(replaced)


def check_output(out: Path, overwrite: bool) -> None:
    """Raises UserError unless an archive may be written to `out`, and what is in its way is an archive of ours."""
    for leftover in (_beside(out, "partial"), _beside(out, "replaced")):
        if leftover.exists() and not _holds_only_ours(leftover):
            raise UserError(f"{leftover} is in the way and no archive: move it away")
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} exists; --overwrite replaces an archive")
    read_manifest(out)
    if not _holds_only_ours(out):
        raise UserError(f"{out} holds other files than an archive's: move them away, or choose another --out")


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")


def _holds_only_ours(folder: Path) -> bool:
    return (
        folder.is_dir()
        and {path.name for path in folder.iterdir()} <= {MANIFEST, TABLE, QUARANTINE, SHARDS, LOCK}
        and all(path.name.startswith("shard-") for path in folder.glob(f"{SHARDS}/*"))
    )


def _clear(folder: Path) -> None:
    """Empties a folder of ours but for its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


class _ShardWriter:
    """One tar file and its index."""

    def __init__(self, archive: Path, number: int) -> None:
        self.payload = 0
        """Bytes of images so far."""
        self._name = f"{SHARDS}/shard-{number:06d}"
        self._archive = archive
        self._tar = _HashedFile(archive / f"{self._name}.tar")
        self._index: list[str] = []

    def add(self, key: str, extension: str, data: bytes) -> int:
        """Writes the file `key.extension` and returns the offset of its bytes in the tar."""
        header = tarfile.TarInfo(f"{key}.{extension}")  # time, owner and mode are constants by default
        header.size = len(data)
        self._tar.write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._tar.size
        self._tar.write(data)
        self._tar.write(bytes(-len(data) % BLOCK))
        self._index.append(f"{extension} {offset} {len(data)} {header.name}\n")
        self.payload += len(data)
        return offset

    def finish(self) -> dict:
        """Closes both files and returns the shard's entry in the manifest."""
        self._tar.write(bytes(2 * BLOCK))  # the end of a tar file
        index = f"{self._name}.idx"
        (self._archive / index).write_text(f"v1.2 {len(self._index)}\n{''.join(self._index)}")
        return {
            "name": f"{self._name}.tar",
            "index": index,
            "samples": len(self._index),
            **self._tar.close(),
        }


class _HashedFile:
    """A new file that counts and hashes what is written to it. `flush` and `closed` are what pyarrow asks of a file."""

    closed = False

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> dict:
        """Closes the file and returns its size and checksum as the manifest has them."""
        self._file.close()
        return {"bytes": self.size, "sha256": self._digest.hexdigest()}
