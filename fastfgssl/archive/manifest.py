"""An archive as its readers see it: opened by its manifest, its table of samples read in place.

DIR/manifest.json          what the archive holds, and the size and checksum of every file that holds samples
DIR/samples.arrow          a row a sample, one record batch a shard (Arrow IPC file, uncompressed)
DIR/shards/shard-*.tar     the encoded images (WebDataset convention), and what is known of each if that is asked for
DIR/shards/shard-*.idx     where they lie (the index of DALI's webdataset reader)
DIR/accounting.arrow       what became of every input: a row a file, or frame, or page
DIR/report.html            the same as a page, for people

None of them holds the name of a file or of a person; which input an id stands for is known beside the key alone.
Archives of version 1 have paths for ids, DIR/quarantine.csv instead of the accounting, and no levels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from fastfgssl.archive.damage import problem_of, require_most_shards
from fastfgssl.archive.manifest_file import MANIFEST, read_manifest
from fastfgssl.runtime.errors import UserError, file_errors, in_a_line
from fastfgssl.runtime.files import sha256_of, user_path

TABLE = "samples.arrow"
QUARANTINE = "quarantine.csv"  # of archives of version 1
SHARDS = "shards"
REPORT = "report.html"
_CHECKED_BYTES = 64 << 20
"""Largest table that is read as a whole to open it: a tenth of a second."""
CHECKSUM_DIFFERS = "its checksum differs from the manifest's"


class Shards(Protocol):
    """Where the shards of an archive come from that is not all here."""

    nbytes: int
    """Bytes of shards that may be here at once."""

    def present(self, shard: int, stop: Event | None = None) -> AbstractContextManager[Path]:
        """The file of a shard, waited for, unless `stop` is set, which stays there during the body."""


class Archive:
    """A prepared archive of N samples, numbered from 0 in the order of the shards, opened for reading.

    Opening reads the manifest and the table, of which more than 64 MiB only the footer; a row is read when asked for.
    Safe to use after a fork. Pickled, it is where it lies and what it was: who opens it again maps its table anew, and
    raises UserError if another archive lies there by then.
    """

    path: Path
    num_samples: int
    shards: Shards | None
    """Where its shards come from; None where all are in `path`."""
    shard_sizes: np.ndarray
    """Samples in each shard, int64 [S]."""
    shard_bytes: np.ndarray
    """Bytes of each shard, int64 [S]."""
    classes: tuple[str, ...]
    """Name of each label, empty if the archive was made without labels."""
    labelled: int
    """Samples with a label."""
    groups: int
    """Distinct groups (patients, lesions)."""
    quarantined: int
    """Images that were left out because something was wrong with them."""
    bit_depth: dict[int, int]
    """Samples by bits a channel, 8 or 16."""
    formats: dict[str, int]
    """Samples by encoding: jpeg, png, tiff, bmp, webp."""
    short_side: int | None
    """What the short side was limited to, in pixels."""
    fingerprint: str
    """The same for two archives if they hold the same samples in the same order."""

    def __init__(
        self, path: Path, manifest: dict, table: pa.ipc.RecordBatchFileReader, shards: Shards | None = None
    ) -> None:
        self.path, self.shards = path, shards
        self.num_samples = manifest["samples"]
        self.shard_sizes = np.array([shard["samples"] for shard in manifest["shards"]], dtype=np.int64)
        self.shard_bytes = np.array([shard["bytes"] for shard in manifest["shards"]], dtype=np.int64)
        self.classes = tuple(manifest["classes"] or ())
        self.labelled = manifest["labelled"]
        self.groups = manifest["groups"]
        self.quarantined = manifest["quarantined"]
        self.bit_depth = {int(bits): count for bits, count in manifest["bit_depth"].items()}
        self.formats = manifest["formats"]
        self.short_side = manifest["short_side"]
        self.fingerprint = manifest["table"]["sha256"]
        self._manifest = manifest
        self._table = table
        self._first = np.concatenate([[0], np.cumsum(self.shard_sizes)])  # sample number a shard begins with
        self._batches: dict[int, pa.RecordBatch] = {}
        self._checked: set[tuple[int, str]] = set()
        self._views: dict[tuple[int, str], np.ndarray] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self.shards, self.fingerprint)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        check_table: bool = True,
        shards: Shards | None = None,
        max_bad_share: float = 0.0,
    ) -> Archive:
        """Opens the archive in the folder `path`, with its shards or with the place that they come from.

        max_bad_share: of the samples, that may be in shards that are missing or of the wrong size (data.max_bad_share);
        they are warned of. Raises UserError for more of them, if there is no archive, if a newer program made it, or if
        the table is missing or has not the size that the manifest tells; with check_table also if a table of up to 64
        MiB has not its checksum. Not read, except by `verify`: shards, and larger tables, of which `columns` still
        refuses rows that do not lie within their shard and what is no table, but not wrong labels, names, or widths.
        """
        if "://" in str(path):
            raise UserError(f"{path} is no folder: training reads archives from object stores by data.cache=DIR")
        path = user_path(path)
        manifest = read_manifest(path)
        facts = manifest["table"]
        if problem := problem_of(path, facts):
            raise problem
        if shards is None:
            require_most_shards(path, manifest, max_bad_share)
        # archives of the benchmark, which hold nothing, have no checksums
        if check_table and facts["sha256"] and facts["bytes"] <= _CHECKED_BYTES:
            with file_errors("read", path / facts["name"]):
                if sha256_of(path / facts["name"]) != facts["sha256"]:
                    raise UserError(f"archive {path} is damaged: {facts['name']}: {CHECKSUM_DIFFERS}")
        with _table_errors(path):
            table = pa.ipc.open_file(pa.memory_map(os.fsencode(path / facts["name"])))
        if len(manifest["shards"]) != table.num_record_batches:
            raise UserError(f"archive {path} is damaged: {MANIFEST} and {TABLE} disagree on the number of shards")
        return cls(path, manifest, table, shards)

    def has_column(self, name: str) -> bool:
        """Whether the table has a column of that name, such as `label`."""
        return name in self._table.schema.names

    def shard(self, shard: int) -> AbstractContextManager[Path]:
        """The tar file of shard number `shard`, which is there to be opened during the body."""
        if self.shards is not None:
            return self.shards.present(shard)
        return nullcontext(self.shard_path(shard))

    def shard_path(self, shard: int) -> Path:
        """Where the tar file of shard number `shard` is, or will be once it has come."""
        return self.path / self._manifest["shards"][shard]["name"]

    def shards_of(self, ids: np.ndarray) -> np.ndarray:
        """Numbers of the shards that hold samples `ids`, int64, ascending, each once."""
        return np.unique(np.searchsorted(self._first, ids, side="right") - 1)

    def columns(self, ids: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Gathers columns of the samples numbered `ids`, int64 [B], each as an array [B] in the order of `ids`.

        Always there: `id` (str, object array), `shard`, `width`, `height`, `crc32` (uint32), `offset`, `size` (uint64,
        bytes; the offset counts from the start of the tar); from version 2 on `low`, `high` (uint16, the levels that
        are black and white). In archives with labels: `label` (int32, index in `classes`, -1 for none), `group` (int64,
        -1 for none), `split` (str or None, object array). Where headers said so: the columns of `outcome.Facts` (str or
        None; float32, nan for none; int32, -1 for none).
        Raises IndexError for an id outside 0..N-1, UserError for a column that the archive has not.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.num_samples):
            raise IndexError(f"sample numbers must lie in 0..{self.num_samples - 1}")
        gathered = {name: np.empty(len(ids), self._dtype(name)) for name in names}
        shards = np.searchsorted(self._first, ids, side="right") - 1
        order = np.argsort(shards, kind="stable")
        present, starts = np.unique(shards[order], return_index=True)
        for shard, places in zip(present.tolist(), np.split(order, starts[1:]), strict=False):
            rows = ids[places] - self._first[shard]
            for name in names:
                gathered[name][places] = self._gather(shard, name, rows)
        return gathered

    def _dtype(self, name: str) -> np.dtype:
        try:
            type = self._table.schema.field(name).type
        except KeyError:
            hint = ": prepare it with --labels" if name in ("label", "group", "split") else ""
            raise UserError(f"archive {self.path} has no column {name!r}{hint}") from None
        return np.dtype(object) if pa.types.is_string(type) else pa.array([], type).to_numpy(zero_copy_only=False).dtype

    def _gather(self, shard: int, name: str, rows: np.ndarray) -> np.ndarray:
        view = self._views.get((shard, name))
        if view is not None:
            return view[rows]
        with _table_errors(self.path):
            return self._read(shard, name, rows)

    def _read(self, shard: int, name: str, rows: np.ndarray) -> np.ndarray:
        if shard not in self._batches:
            self._batches[shard] = self._table.get_batch(shard)
        column = self._batches[shard].column(name)
        if (shard, name) not in self._checked:
            self._check(shard, name)
            self._checked.add((shard, name))
        if not self._table.schema.field(name).nullable and not pa.types.is_string(column.type):
            view = self._views[shard, name] = column.to_numpy()  # of the mapped file itself
            return view[rows]
        taken = column.take(pa.array(rows))
        if pa.types.is_string(taken.type):
            return taken.to_numpy(zero_copy_only=False)
        nothing = float("nan") if pa.types.is_floating(taken.type) else -1
        return taken.fill_null(nothing).to_numpy(zero_copy_only=False)

    def _check(self, shard: int, name: str) -> None:
        """Raises ArrowInvalid unless a shard's column can be read, and its samples lie within the shard."""
        batch, facts = self._batches[shard], self._manifest["shards"][shard]
        place = name in ("offset", "size")
        for used in ("offset", "size") if place else (name,):
            _require_type(batch.schema.field(used), integer=place)
        column = batch.column(name)
        column.validate(full=pa.types.is_string(column.type))  # by a wrong place any address would be read
        fits = len(batch) == self.shard_sizes[shard]
        if place:  # readers reserve as much memory as it says
            offset, size = (batch.column(name).to_numpy() for name in ("offset", "size"))
            fits &= bool((offset <= facts["bytes"] - np.minimum(size, facts["bytes"])).all())
            fits &= bool((size <= facts["bytes"]).all())
        if not fits:
            raise pa.ArrowInvalid(f"it does not fit {facts['name']}")


def _require_type(field: pa.Field, *, integer: bool) -> None:
    """Raises ArrowInvalid for a column that is neither text nor numbers, or whose nulls no number could stand for."""
    type, types = field.type, pa.types
    if types.is_unsigned_integer(type) or integer:
        fits = types.is_integer(type) and not field.nullable
    else:
        fits = types.is_string(type) or types.is_floating(type) or types.is_signed_integer(type)
    if not fits:
        raise pa.ArrowInvalid(f"column {field.name} is of {'nullable ' * field.nullable}{type}")


def _reopened(path: Path, shards: Shards | None, fingerprint: str) -> Archive:
    archive = Archive.open(path, shards=shards, max_bad_share=1.0)  # it was taken before
    if archive.fingerprint != fingerprint:
        raise UserError(f"archive {path} is another one by now: it was replaced or added to; begin again")
    return archive


@contextmanager
def _table_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not pyarrow's verdict on the bytes
            raise UserError(f"cannot read {path / TABLE}: {error.strerror}", errno=error.errno) from error
        raise UserError(f"archive {path} is damaged: {TABLE}: {in_a_line(error)}; copy or prepare it again") from error
