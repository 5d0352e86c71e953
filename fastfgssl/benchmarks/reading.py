"""What comes before the decoder: which images, their bytes, their random numbers; and opening a very long index.

`python -m fastfgssl.benchmarks.reading ARCHIVE [TRACE]` opens an archive in a process of its own and prints what that
took; with TRACE it also writes a Chrome trace there, and libraries for that count in the memory.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastfgssl.archive.manifest import TABLE, Archive
from fastfgssl.archive.manifest_file import MANIFEST
from fastfgssl.data.order import Order
from fastfgssl.data.presets import PRESETS
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.data.reader import Reader
from fastfgssl.data.view_params import draw_view_params
from fastfgssl.runtime.environment import peak_memory

if TYPE_CHECKING:  # they import torch, which would count in the memory of opening an index
    from fastfgssl.benchmarks.measure import Record, Suite

BATCH, SIDE, GRIDS = 256, 224, (16, 8, 4)


class HostPart:
    """The host's part of a batch of the `paper` preset: what the loader does before the graph runs."""

    def __init__(self, archive: Archive) -> None:
        self.order = Order(archive.shard_sizes, seed=0, window=16)
        self.reader, self.quarantine = Reader(archive), Quarantine(archive.num_samples)

    def make(self, step: int) -> list[np.ndarray]:
        """Draws the parameters of step `step`; returns its encoded images, compared with their checksums."""
        slots = self.order.slots(step * BATCH, (step + 1) * BATCH)
        ids, encoded = self.quarantine.read(slots.ids, self.reader)
        sizes = self.reader.picture_sizes(ids)
        draw_view_params(PRESETS["paper"], slots, seed=0, sizes=sizes, image_size=SIDE, grids=GRIDS)
        return encoded


def records(archive: Path, suite: Suite) -> Iterator[Record]:
    """A record for the host's part of a batch, and one for opening an index of `index_samples` samples.

    The first batch's images are also put into files of their own, for the baseline.
    """
    suite = suite.on_host()
    for measure in (_reading, _opening):
        with tempfile.TemporaryDirectory() as name:
            yield measure(archive, Path(name), suite)


def _reading(path: Path, folder: Path, suite: Suite) -> Record:
    import torch

    from fastfgssl.benchmarks.measure import CheckFailed

    archive, batches = Archive.open(path), 20
    part = HostPart(archive)
    ids = part.order.slots(0, BATCH).ids
    checksums = archive.columns(ids, ["crc32"])["crc32"].tolist()
    payloads = part.make(0)
    if [zlib.crc32(payload.data) for payload in payloads] != checksums:
        raise CheckFailed("the reader gives other bytes than were stored")
    files = [folder / str(place) for place in range(BATCH)]
    for file, payload in zip(files, payloads, strict=True):
        file.write_bytes(payload.data)

    def plain() -> None:
        """As a Dataset does it: a generator an image draws its parameters, and its file is opened and read."""
        for _ in range(batches):
            for index in torch.randperm(BATCH).tolist():
                rng = np.random.default_rng(index)
                for grid in GRIDS:
                    rng.permutation(grid * grid)
                for _ in range(8):  # flip, grayscale and blur of both views, their sigmas, solarise
                    rng.random()
                files[index].read_bytes()

    return suite.compare(
        f"reader, checksums, order and view parameters, batch {BATCH}",
        ours=lambda: [part.make(step) for step in range(batches)],
        baseline=("a numpy generator and a file opened for each image", plain),
        limit=("reader alone", lambda: [part.reader.read(ids) for _ in range(batches)]),
        items=batches * BATCH,
        unit="images/s",
        runs=15,
    )


def _opening(_archive: Path, folder: Path, suite: Suite) -> Record:
    from fastfgssl.benchmarks.archive import write_index

    num_samples = suite.settings.index_samples
    case = f"opening an index of {num_samples:,} samples, and its first batch"
    write_index(folder, num_samples)
    seconds: dict[str, list[float]] = {"ours": [], "baseline": [], "limit": []}
    memory = []
    for _ in range(3):
        opened = _open_alone(folder)
        seconds["ours"].append(opened["seconds"])
        memory.append(opened["resident_memory"])
        seconds["baseline"].append(_seconds(lambda: _read_through(folder / TABLE)))
        seconds["limit"].append(_seconds(lambda: json.loads((folder / MANIFEST).read_bytes())))
    if (file := suite.settings.traces.file(f"input: {case}")) is not None:
        _open_alone(folder, file)
    return suite.record(
        case,
        seconds,
        baseline="reading the table once",
        limit="reading the manifest",
        unit="openings/s",
        details={"resident_memory": statistics.median(memory), "seconds": statistics.median(seconds["ours"])},
    )


def _open_alone(archive: Path, *trace: Path) -> dict:
    """What `main` prints, in a process of its own."""
    command = [sys.executable, "-m", "fastfgssl.benchmarks.reading", str(archive), *map(str, trace)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _read_through(file: Path) -> None:
    with file.open("rb") as stream:
        while stream.read(1 << 24):
            pass


def main() -> None:
    def open_and_make() -> None:
        HostPart(Archive.open(sys.argv[1])).make(0)

    if len(sys.argv) > 2:
        import torch

        from fastfgssl.benchmarks.trace import write_trace

        write_trace(Path(sys.argv[2]), open_and_make, torch.device("cpu"), with_stack=True)
    seconds = _seconds(open_and_make)
    print(json.dumps({"seconds": seconds, "resident_memory": peak_memory()}))


if __name__ == "__main__":
    main()
