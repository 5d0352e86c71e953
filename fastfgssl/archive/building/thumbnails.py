"""Near-duplicates among new images, and of the samples that an archive holds already, by their thumbnails.

Those of an archive's samples are kept beside its key, by the hashes of their pixels, for runs that add to it. What is
not there, as of an archive that was made without them, is made of its shards: the pixels are the same, and so are the
thumbnails.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from fastfgssl.archive.building.accounting import WRITTEN
from fastfgssl.archive.building.base import Base
from fastfgssl.archive.building.inputs import write_private
from fastfgssl.archive.building.near_duplicates import SIDE, near_duplicates
from fastfgssl.archive.building.parts import read_part
from fastfgssl.archive.building.plan import DonePart, Inputs, first_images, first_of_its_kind, pixel_hashes
from fastfgssl.archive.building.tasks import OnProgress, do_all
from fastfgssl.archive.building.worker import Watch
from fastfgssl.archive.images.image import thumbnail_of_sample

_ROW = np.dtype([("pixels", np.uint64, 2), ("thumbnail", np.int8, SIDE * SIDE)])
"""Of the file beside the key."""
_ROWS = 1 << 14
"""That are in memory at once."""


class Alike:
    """Which images are nearly but not quite the same as earlier ones."""

    def __init__(
        self,
        base: Base,
        inputs: Inputs,
        parts: Sequence[DonePart],
        *,
        kept: Path,
        folder: Path,
        workers: int,
        on_progress: OnProgress,
    ) -> None:
        """base: the samples that are there already; `inputs`, of `parts`, come behind them. kept: the file beside the
        key, see `keep`. folder: for a nameless file with the thumbnails of both."""
        held, samples = base.pixels()
        own = first_of_its_kind(held) == np.arange(len(held))
        held, samples = held[own], samples[own]
        self._images = first_images(inputs, held)
        self._pixels = np.concatenate([held, pixel_hashes(inputs.table["pixels"].take(pa.array(self._images)))])
        self._rows = _room(folder, len(self._pixels))
        self.unreadable = 0
        """Samples that could not be read, and are like nothing."""
        self._read_held(base, samples, kept, workers, on_progress)
        _fill_new(self._rows[len(held) :], inputs.part[self._images], inputs.at[self._images], parts)
        numbers = np.concatenate([samples - base.num_samples, self._images])
        self.pairs = [
            (int(numbers[one]), int(numbers[two]), cosine)
            for one, two, cosine in near_duplicates(self._rows, known=len(held))
        ]
        """Earlier, later, and how nearly: numbers among the inputs, or of samples, then negative, from the last one."""

    def keep(self, path: Path, inputs: Inputs) -> None:
        """Writes the thumbnails of all samples, for those that come later, once it is settled which these are.

        The nameless file is given back.
        """
        held = len(self._rows) - len(self._images)
        is_sample = np.concatenate([np.ones(held, bool), inputs.outcome[self._images] == WRITTEN])
        self._write(path, np.flatnonzero(is_sample))
        self._rows = self._rows[:0].copy()

    def _read_held(self, base: Base, samples: np.ndarray, kept: Path, workers: int, on_progress: OnProgress) -> None:
        rows = self._rows[: len(samples)]
        missing = np.flatnonzero(~_fill(rows, self._pixels[: len(samples)], kept))
        tasks = list(_tasks(base, samples[missing], missing))
        if not tasks:
            return
        nbytes = sum(int(task.sizes.sum()) for task in tasks)
        made = do_all(
            ThumbnailMaker(),
            tasks,
            len(tasks),
            workers=workers,
            nbytes=nbytes,
            what="thumbnails",
            on_progress=on_progress,
        )
        for places, thumbnails, unreadable in made:
            rows[places] = thumbnails
            self.unreadable += unreadable
        self._write(kept, np.arange(len(samples)))  # of a million that was an hour's work

    def _write(self, path: Path, which: np.ndarray) -> None:
        def write(file: BinaryIO) -> None:
            descr = np.lib.format.dtype_to_descr(_ROW)
            header = {"descr": descr, "fortran_order": False, "shape": (len(which),)}
            np.lib.format.write_array_header_1_0(file, header)
            for begin in range(0, len(which), _ROWS):
                some = which[begin : begin + _ROWS]
                block = np.empty(len(some), _ROW)
                block["pixels"], block["thumbnail"] = self._pixels[some], self._rows[some]
                file.write(block.tobytes())

        write_private(path, write)


class _Task(NamedTuple):
    """Samples of one shard: columns of N."""

    shard: Path
    places: np.ndarray
    """Where the caller wants what is made of them."""
    offsets: np.ndarray
    sizes: np.ndarray


class ThumbnailMaker:
    """Makes thumbnails of an archive's samples: what a worker does."""

    def __call__(self, task: _Task, watch: Watch) -> tuple[np.ndarray, np.ndarray, int]:
        """The task's places, the thumbnails, int8 [N, D], and how many could not be decoded, whose are zeros."""
        made = np.zeros((len(task.places), SIDE * SIDE), np.int8)
        failed = 0
        with task.shard.open("rb") as file:
            for row, offset, size in zip(made, task.offsets.tolist(), task.sizes.tolist(), strict=True):
                file.seek(offset)
                data = file.read(size)
                try:
                    row[:] = thumbnail_of_sample(data)
                except Exception:  # of decoders: it is damaged, as `--verify` tells
                    failed += 1
        return task.places, made, failed


def _tasks(base: Base, samples: np.ndarray, places: np.ndarray) -> Iterator[_Task]:
    if base.table is None:
        return
    table = base.table.select(("shard", "offset", "size")).take(pa.array(samples))
    shard, offsets, sizes = (table[name].to_numpy() for name in ("shard", "offset", "size"))
    for number in np.unique(shard).tolist():
        of_shard = np.flatnonzero(shard == number)
        for some in np.array_split(of_shard, -(-len(of_shard) // _ROWS)):
            path = Path(base.path or "", base.shards[number]["name"])
            yield _Task(path, places[some], offsets[some], sizes[some])


def _fill(rows: np.ndarray, pixels: np.ndarray, kept: Path) -> np.ndarray:
    """Fills in what the file has, and says what that is: bool [K]. Nothing of no file, or of one that is damaged."""
    found = np.zeros(len(rows), bool)
    try:
        stored = np.load(kept, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return found
    if stored.dtype != _ROW or stored.ndim != 1 or not len(rows):
        return found
    order = np.lexsort((pixels[:, 1], pixels[:, 0]))
    first = pixels[order, 0]
    for begin in range(0, len(stored), _ROWS):
        block = np.array(stored[begin : begin + _ROWS])
        at = order[np.searchsorted(first, block["pixels"][:, 0]).clip(max=len(first) - 1)]
        same = (pixels[at] == block["pixels"]).all(axis=1)
        rows[at[same]] = block["thumbnail"][same]
        found[at[same]] = True
    return found


def _room(folder: Path, number: int) -> np.ndarray:
    """int8 [number, D] of zeros, in a file that goes with it."""
    if not number:
        return np.zeros((0, SIDE * SIDE), np.int8)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, number * SIDE * SIDE)  # a full disk would end the process later
        return np.memmap(file, np.int8, "r+", shape=(number, SIDE * SIDE))


def _fill_new(rows: np.ndarray, part: np.ndarray, at: np.ndarray, parts: Sequence[DonePart]) -> None:
    """Fills in `rows`, int8 [N, D], with what is in rows `at` of parts, a part at a time."""
    order = np.argsort(part, kind="stable")
    begins = np.flatnonzero(np.diff(part[order], prepend=-1))
    for of_part in np.split(order, begins[1:]) if len(order) else ():
        column = read_part(parts[part[of_part[0]]].folder)["thumbnail"].take(pa.array(at[of_part]))
        rows[of_part] = np.frombuffer(b"".join(column.to_pylist()), np.int8).reshape(len(of_part), -1)
