"""How fast the archive is read, in the order of training, and how fast the output folder takes a file."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.runtime.errors import file_errors

_CHUNK = 4 << 20
_MAX_WRITTEN = 256 << 20
_PROBES = 16  # of each shard
_OPEN_SHARDS = 256  # of the 1,024 files that a process commonly may have open


class ReadRate(NamedTuple):
    samples: int
    bytes: int
    seconds: float
    cached: float | None
    """Share of probed pages that were in memory although the system was asked to drop them; None: it does not tell."""

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds

    @property
    def bytes_per_sample(self) -> float:
        return self.bytes / self.samples

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds


def measure_reading(archive: Archive, batches: Iterator[np.ndarray], seconds: float) -> ReadRate:
    """Reads the samples of `batches` (ids, int64 [B] each) as the trainer's one reading thread does: sample by sample.

    Shards are dropped from the page cache first, as far as the system does that; no sample is read twice, since the
    second time it would come from memory. Ends after `seconds`, or when all have been read once.
    """
    files: dict[int, int] = {}
    samples = size = 0
    spent = 0.0
    probes: list[bool | None] = []
    seen: set[int] = set()
    with ExitStack() as opened:
        for ids in batches:
            fresh = [sample for sample in dict.fromkeys(ids.tolist()) if sample not in seen]
            seen.update(fresh)
            rows = archive.columns(np.array(fresh, np.int64), ("shard", "offset", "size"))
            for shard in dict.fromkeys(rows["shard"].tolist()):
                if shard not in files and len(files) < _OPEN_SHARDS:
                    with archive.shard(shard) as path:
                        files[shard] = _open_dropped(path, opened)
                    probes += _probe(files[shard])  # before anything is read, and read ahead
            for shard, offset, length in zip(*(rows[name].tolist() for name in rows), strict=True):
                if shard not in files or (spent > seconds and samples >= 2):
                    continue
                start = time.perf_counter()
                size += len(os.pread(files[shard], length, offset))
                spent += time.perf_counter() - start
                samples += 1
            if spent > seconds or not fresh or len(seen) == archive.num_samples:
                break
    known = [probe for probe in probes if probe is not None]
    cached = sum(known) / len(known) if len(known) == len(probes) else None
    return ReadRate(samples, size, max(spent, 1e-9), cached)


def _open_dropped(path: Path, opened: ExitStack) -> int:
    """A descriptor of the file, which the system has been asked to drop from its page cache."""
    with file_errors("read", path):
        file = os.open(path, os.O_RDONLY)
    opened.callback(os.close, file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    return file


def _probe(file: int) -> list[bool | None]:
    """Whether pages of the file, spread evenly, are in memory."""
    size = os.fstat(file).st_size
    return [_is_cached(file, size * place // _PROBES) for place in range(_PROBES)]


def _is_cached(file: int, offset: int) -> bool | None:
    """Whether the page at `offset` is in memory: reads it if no disk is needed. None if the file system cannot tell."""
    try:
        os.preadv(file, [bytearray(1)], offset - offset % mmap.PAGESIZE, os.RWF_NOWAIT)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    return True


def measure_writing(folder: Path, seconds: float) -> float:
    """Bytes a second of a file in `folder`, its way to the disk included; leaves nothing behind.

    Raises `UserError` if no file can be written there.
    """
    chunk = os.urandom(_CHUNK)  # a file system may compress what repeats
    made = _missing_parents(folder)
    with file_errors("write", folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-", buffering=0) as file:
                start, written = time.perf_counter(), 0
                while written < _MAX_WRITTEN and (not written or time.perf_counter() - start < seconds):
                    written += file.write(chunk)
                    os.fsync(file.fileno())
                spent = time.perf_counter() - start
        finally:
            for path in made:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
    return written / spent


def _missing_parents(folder: Path) -> list[Path]:
    """`folder` and those above it that do not exist yet, deepest first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]
