"""What a late giant among small images adds to the memory of a run, with and without a rehearsal.

`python -m helpers.giant_memory FOLDER [rehearse]` makes an archive there, once, of 39 images of 300 pixels and one of
6000, which comes in the last of five batches of 8, and prints the peak of resident memory in MiB after each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.data import rehearsal
from fastfgssl.data.order import Order, Slots
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.runtime.environment import peak_memory
from helpers.loader import SEED, loader, spec

COUNT, STEPS, BATCH = 40, 5, 8


def slots(step: int) -> Slots:
    """Of an archive of one shard."""
    return Order(np.array([COUNT]), seed=SEED, window=2).slots(step * BATCH, (step + 1) * BATCH)


def make(folder: Path) -> Path:
    source, late = folder / "source", int(slots(STEPS - 1).ids[-1])
    if source.exists():
        return folder / "archive"
    source.mkdir(parents=True)
    for number in range(COUNT):
        side = 6000 if number == late else 300
        pixels = np.random.default_rng(number).integers(0, 256, (side // 10, side // 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side)).save(source / f"{number:02}.jpg")
    prepare(PrepareOptions(sources=[source], out=folder / "archive", workers=1))
    return folder / "archive"


def main() -> None:
    archive = Archive.open(make(Path(sys.argv[1])))
    peaks = {"before": peak_memory()}
    options = {"batch_size": BATCH, "image_size": 224, "threads": 1, "prefetch": 1}
    if sys.argv[2:] == ["rehearse"]:
        rehearsal._WORTH = 0
        rehearsal.rehearse(archive, spec(**options), slots, Quarantine(COUNT), stop=STEPS)
        peaks["rehearsed"] = peak_memory()
    with loader(archive, stop=STEPS, ids=lambda step: slots(step).ids, **options) as batches:
        for step, _ in enumerate(batches, 1):
            peaks[f"batch {step}"] = peak_memory()
    print(", ".join(f"{name}: {nbytes >> 20}" for name, nbytes in peaks.items()))


if __name__ == "__main__":
    main()
