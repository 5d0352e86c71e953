"""What comparing bytes with their checksums costs the input path, in CPU time, which a busy machine does not stretch.

`python -m helpers.checksum_cost ARCHIVE` runs the loader of the `paper` preset at 224 pixels, and checks the same
batches' bytes beside it, in turns; prints the share of the checks in percent: median, quartiles, smallest and largest.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.batch import Needs
from fastfgssl.data.reader import Reader
from helpers.loader import loader

BATCH, BATCHES, TURNS = 64, 4, 15


def shares(path: Path) -> list[float]:
    """Of each turn: CPU time of the checks over that of the loader, which makes them too."""
    archive = Archive.open(path)
    reader, found = Reader(archive), []
    needs = Needs(grids=(16, 8, 4))
    ids = [(np.arange(BATCH) + step * BATCH) % archive.num_samples for step in range(TURNS * BATCHES + 8)]
    encoded = [reader.read(of_batch) for of_batch in ids[:BATCHES]]
    options = {"batch_size": BATCH, "image_size": 224, "needs": needs, "ids": ids.__getitem__, "stop": len(ids)}
    with loader(archive, **options) as batches:
        for _ in range(4):  # the first fill the queues
            next(batches)
        for _ in range(TURNS):
            start = time.process_time()
            for _ in range(BATCHES):
                next(batches)
            whole = time.process_time() - start
            start = time.thread_time()
            for of_batch, payloads in zip(ids, encoded, strict=False):
                reader.find_damage(of_batch, payloads)
            found.append((time.thread_time() - start) / whole)
    return found


def main() -> None:
    found = [100 * share for share in shares(Path(sys.argv[1]))]
    first, median, third = statistics.quantiles(found, n=4)
    print(f"{median:.2f} % ({first:.2f} to {third:.2f}; {min(found):.2f} to {max(found):.2f}), {len(found)} turns")


if __name__ == "__main__":
    main()
