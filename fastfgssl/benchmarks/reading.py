"""What comes before the decoder: which images, their bytes, their random numbers; and opening a very long index.

`python -m fastfgssl.benchmarks.reading ARCHIVE` opens an archive in a process of its own and prints what that took.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastfgssl.archive.manifest import MANIFEST, TABLE, Archive
from fastfgssl.data.order import Order
from fastfgssl.data.presets import PRESETS
from fastfgssl.data.reader import Reader
from fastfgssl.data.view_params import draw_view_params

BATCH, SIDE, GRIDS = 256, 224, (16, 8, 4)


class HostPart:
    """The host's part of a batch of the `paper` preset: what the loader does before the graph runs."""

    def __init__(self, archive: Archive) -> None:
        self.order = Order(archive.shard_sizes, seed=0, window=16)
        self.reader = Reader(archive)

    def make(self, step: int) -> list[np.ndarray]:
        """Draws the parameters of step `step`; returns copies of its encoded images."""
        slots = self.order.slots(step * BATCH, (step + 1) * BATCH)
        sizes = self.reader.picture_sizes(slots.ids)
        draw_view_params(PRESETS["paper"], slots, seed=0, sizes=sizes, image_size=SIDE, grids=GRIDS)
        return [encoded.copy() for encoded in self.reader.read(slots.ids)]


def records(files: list[Path], archive: Path, index_samples: int) -> Iterator:
    """A record for the host's part of a batch, and one for opening an index of `index_samples` samples."""
    import torch

    from fastfgssl.benchmarks.archive import write_index
    from fastfgssl.benchmarks.measure import CheckFailed, compare, record_of

    device, batches = torch.device("cpu"), 20
    part = HostPart(Archive.open(archive))
    ids = part.order.slots(0, BATCH).ids
    names = Archive.open(archive).columns(ids, ["id"])["id"]
    stored = {file.name: file.read_bytes() for file in files}
    if [bytes(payload) for payload in part.make(0)] != [stored[Path(name).name] for name in names]:
        raise CheckFailed("the reader gives other bytes than the files have")

    def plain() -> None:
        """As a Dataset does it: a generator an image draws its parameters, and its file is opened and read."""
        for _ in range(batches):
            for index in torch.randperm(BATCH).tolist():
                rng = np.random.default_rng(index)
                for grid in GRIDS:
                    rng.permutation(grid * grid)
                for _ in range(8):  # flip, grayscale and blur of both views, their sigmas, solarise
                    rng.random()
                files[index % len(files)].read_bytes()

    yield compare(
        "input",
        f"reader, order and view parameters, batch {BATCH}",
        ours=lambda: [part.make(step) for step in range(batches)],
        baseline=("a numpy generator and a file opened for each image", plain),
        limit=("reader alone", lambda: [[b.copy() for b in part.reader.read(ids)] for _ in range(batches)]),
        items=batches * BATCH,
        unit="images/s",
        runs=15,
        device=device,
    )
    with tempfile.TemporaryDirectory() as name:
        write_index(Path(name), index_samples)
        seconds: dict[str, list[float]] = {"ours": [], "baseline": [], "limit": []}
        memory = []
        for _ in range(3):
            command = [sys.executable, "-m", "fastfgssl.benchmarks.reading", name]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds["ours"].append(told["seconds"])
            memory.append(told["resident_memory"])
            seconds["baseline"].append(_seconds(lambda: _read_through(Path(name) / TABLE)))
            seconds["limit"].append(_seconds(lambda: json.loads((Path(name) / MANIFEST).read_bytes())))
        yield record_of(
            "input",
            f"opening an index of {index_samples:,} samples, and its first batch",
            seconds,
            baseline="reading the table once",
            limit="reading the manifest",
            items=1,
            unit="openings/s",
            device=device,
            details={"resident_memory": statistics.median(memory), "seconds": statistics.median(seconds["ours"])},
        )


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _read_through(file: Path) -> None:
    with file.open("rb") as stream:
        while stream.read(1 << 24):
            pass


def main() -> None:
    part = []
    seconds = _seconds(lambda: part.append(HostPart(Archive.open(sys.argv[1]))) or part[0].make(0))
    # not ru_maxrss, in which a process begins with what its parent had
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (memory,) = (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "resident_memory": memory}))


if __name__ == "__main__":
    main()
