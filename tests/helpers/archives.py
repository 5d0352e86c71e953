"""Archives written sample by sample, of random bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.shards import ArchiveWriter, Sample

CLASSES = ["a", "b", "c"]


def make_samples(sizes: list[int]) -> list[Sample]:
    rng = np.random.default_rng(len(sizes))
    return [
        Sample(
            id=f"folder/{i}.image",
            data=rng.bytes(size),
            format=["jpeg", "png", "tiff"][i % 3],
            width=600 + i,
            height=450 + i,
            bit_depth=16 if i % 4 == 1 else 8,
            label=None if i % 5 == 0 else CLASSES[i % 3],
            group=None if i % 7 == 0 else f"patient {(i * 5) % 4}",
            split=None if i % 2 else "fit",
        )
        for i, size in enumerate(sizes)
    ]


def write(out: Path, samples: list[Sample], **options: object) -> Archive:
    with ArchiveWriter(out, classes=CLASSES, **options) as writer:
        for sample in samples:
            writer.add(sample)
        writer.quarantine("bad.png", "/somewhere/bad, very bad.png", "damaged: a reason")
        writer.commit()
    return Archive.open(out)
