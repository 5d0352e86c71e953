"""Archives that suites read: the user's own, or phantoms of 600 x 450 pixels; and one with an index of any length."""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastfgssl.archive.building.tables import COLUMNS
from fastfgssl.archive.manifest import SHARDS, TABLE
from fastfgssl.archive.manifest_file import FORMAT, MANIFEST, VERSION
from fastfgssl.archive.phantom import write_phantoms
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.runtime.errors import UserError

WIDTH, HEIGHT = 600, 450
ROW = 53  # bytes of a sample in a generated table, rounded up


@contextmanager
def open_archive(path: Path | None, *, count: int = 64, short_side: int | None = None) -> Iterator[Path]:
    """`path`, or an archive of `count` phantoms, JPEG of quality 90, that is there for as long as the body runs."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(folder / "photographs", count, width=WIDTH, height=HEIGHT)
        prepare(PrepareOptions(sources=[folder / "photographs"], out=folder / "archive", short_side=short_side))
        yield folder / "archive"


def write_index(folder: Path, num_samples: int, *, samples_a_shard: int = 10_000) -> None:
    """An archive of `num_samples` samples whose shards are holes: true in every size and place, without images.

    Raises `UserError` if the disk has no room for its table.
    """
    needed, free = ROW * num_samples, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"--index-samples {num_samples}: takes {needed / 1e9:.1f} GB in {folder.parent}, where {free / 1e9:.1f} GB"
            " are free; give fewer, or set TMPDIR to a folder with more room"
        )
    (folder / SHARDS).mkdir(parents=True)
    size = 1024
    shards: list[dict[str, str | int]] = []
    schema = pa.schema(COLUMNS)
    with pa.OSFile(str(folder / TABLE), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for first in range(0, num_samples, samples_a_shard):
            count = min(samples_a_shard, num_samples - first)
            name = f"{SHARDS}/shard-{len(shards):06}.tar"
            with (folder / name).open("wb") as file:
                file.truncate(count * size)
            rows = np.arange(count)
            columns = {
                "id": [f"s/{first + row}" for row in range(count)],
                "shard": np.full(count, len(shards)),
                "offset": rows * size,
                "size": np.full(count, size),
                "width": np.full(count, WIDTH),
                "height": np.full(count, HEIGHT),
                "crc32": np.full(count, zlib.crc32(bytes(size))),  # of a file without contents
                "bit_depth": np.full(count, 8),
                "low": np.full(count, 0),
                "high": np.full(count, 255),
            }
            arrays = [pa.array(columns[field.name], field.type) for field in schema]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            shards.append({"name": name, "samples": count, "bytes": count * size, "sha256": "", "index": ""})
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "samples": num_samples,
        "shards": shards,
        "table": {"name": TABLE, "bytes": (folder / TABLE).stat().st_size, "sha256": ""},
        "classes": None,
        "labelled": 0,
        "groups": 0,
        "quarantined": 0,
        "bit_depth": {"8": num_samples},
        "formats": {"jpeg": num_samples},
        "short_side": None,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
