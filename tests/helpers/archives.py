"""Archives of random bytes, written from parts that no worker has made."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from fastfgssl.archive.building import parts
from fastfgssl.archive.building.assemble import Ids, assemble
from fastfgssl.archive.building.base import Base
from fastfgssl.archive.building.keys import Key
from fastfgssl.archive.building.plan import DonePart
from fastfgssl.archive.building.publish import Place
from fastfgssl.archive.labels.assignment import Facts, Labels, by_entry
from fastfgssl.archive.listing import find_images
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.options import MIB, PrepareOptions
from fastfgssl.archive.summary import Summary

CLASSES = ["a", "b", "c"]
KEY = Key(bytes(32))


@dataclass
class Sample:
    """An image of bytes that nobody decodes."""

    name: str
    data: bytes
    format: str
    width: int
    height: int
    bit_depth: int
    label: str | None = None
    group: str | None = None
    split: str | None = None
    modality: str | None = None
    spacing_row: float | None = None

    @property
    def id(self) -> str:
        return KEY.id("source", self.name.encode()).hex()

    def row(self, entry: int, offset: int) -> dict:
        levels = (0, 4095 if self.bit_depth == 16 else 255)
        pixels = zlib.crc32(f"{self.name}".encode()).to_bytes(16, "big")
        facts = {name: vars(self)[name] for name in ("modality", "spacing_row")}
        columns = {name: vars(self)[name] for name in ("format", "width", "height", "bit_depth")} | facts
        columns |= {"low": levels[0], "high": levels[1], "pixels": pixels, "crc32": zlib.crc32(self.data)}
        return columns | {"entry": entry, "outcome": "image", "offset": offset, "size": len(self.data)}


def make_samples(sizes: list[int]) -> list[Sample]:
    rng = np.random.default_rng(len(sizes))
    return [
        Sample(
            name=f"{i:03d}.png",
            data=rng.bytes(size),
            format=["jpeg", "png", "tiff"][i % 3],
            width=600 + i,
            height=450 + i,
            bit_depth=16 if i % 4 == 1 else 8,
            label=None if i % 5 == 0 else CLASSES[i % 3],
            group=None if i % 7 == 0 else f"patient {(i * 5) % 4}",
            split=None if i % 2 else "fit",
            modality="MR" if i % 3 == 1 else None,
            spacing_row=0.5 if i % 3 == 1 else None,
        )
        for i, size in enumerate(sizes)
    ]


def write(
    out: Path,
    samples: list[Sample],
    *,
    shard_bytes: int = 1 << 20,
    labelled: bool = True,
    overwrite: bool = False,
    short_side: int | None = None,
) -> Archive:
    """An archive of the samples, and of a file that was damaged."""
    with TemporaryDirectory() as temporary:
        source = Path(temporary, "source")
        source.mkdir()
        for name in [*(sample.name for sample in samples), "zzz bad.png"]:
            (source / name).touch()
        options = PrepareOptions(
            sources=[source],
            out=out,
            shard_size=shard_bytes / MIB,
            workers=1,
            short_side=short_side,
            overwrite=overwrite,
            key=Path(temporary, "key"),
        )
        place = Place(out, overwrite=overwrite)
        with place.held():
            listing = find_images([source])
            known = np.zeros(len(listing), bool)
            facts = {sample.name: Facts(sample.label, sample.group, sample.split) for sample in samples}
            labels = Labels(by_entry(facts, listing), CLASSES, 0, []) if labelled else None
            part = DonePart(_write_part(place, samples), np.arange(len(listing)))
            ids = Ids(listing, KEY)
            assemble(options, place, Base(), ids, labels, known, [part], Summary(), lambda progress: None)
    return Archive.open(out)


def _write_part(place: Place, samples: list[Sample]) -> Path:
    folder = place.parts / "part"
    folder.mkdir()
    (folder / parts.IMAGES).write_bytes(b"".join(sample.data for sample in samples))
    offsets = np.cumsum([0, *(len(sample.data) for sample in samples)]).tolist()
    rows = [sample.row(entry, offsets[entry]) for entry, sample in enumerate(samples)]
    rows.append({"entry": len(samples), "outcome": "quarantined", "reason": "damaged: Jane Doe"})
    with pa.ipc.new_file(str(folder / parts.ROWS), parts.SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=parts.SCHEMA))
    return folder


def edit_manifest(path: Path, **changes: object) -> None:
    """Lets the manifest of the archive in `path` say something else."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))
