"""Seconds and memory of both pages of a report, over generated tables of many inputs.

python tests/helpers/report_scale.py [INPUTS]
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastfgssl.archive.building.accounting import DUPLICATE, OUTCOMES, SCHEMA, WRITTEN, outcome_column
from fastfgssl.archive.building.base import hexadecimal_ids
from fastfgssl.archive.building.inputs import Input, write_inputs
from fastfgssl.archive.report.contents import Contents
from fastfgssl.archive.report.page import write_private_report, write_report
from fastfgssl.archive.report.samples import Samples

_SHARES = [0.7, 0.1, 0.05, 0.1, 0.04, 0.01]  # of the outcomes
_KINDS = 90


def generated(number: int, folder: Path) -> Contents:
    """The tables of `number` inputs, and the table of names in `folder`."""
    rng = np.random.default_rng(0)
    codes = rng.choice(len(OUTCOMES), number, p=_SHARES).astype(np.int8)
    written, repeats = codes == WRITTEN, codes == DUPLICATE
    samples = int(written.sum())
    ids = hexadecimal_ids(rng.integers(0, 1 << 63, (number, 2)).astype(np.uint64))
    sample = np.full(number, -1)
    sample[written], sample[repeats] = np.arange(samples), rng.integers(0, samples, repeats.sum())
    pixels = rng.integers(0, 1 << 63, (number, 2)).astype(np.uint64)
    pixels[repeats] = pixels[written][sample[repeats]]
    kind = np.where(written | repeats, 0, rng.integers(1, _KINDS + 1, number))
    reasons = pa.array([None, *(f"kind {i}" for i in range(_KINDS))]).take(pa.array(kind))
    columns = [
        ids,
        pa.array([""]).take(pa.array(np.zeros(number, np.int64))),
        outcome_column(codes),
        reasons,
        pa.array(sample, mask=sample < 0),
        pa.array(np.full(number, 1000)),
        pa.Array.from_buffers(pa.binary(16), number, [None, pa.py_buffer(pixels.tobytes())]),
    ]
    numbers = {
        "shard": (np.zeros(samples), pa.uint32()),
        "offset": (np.zeros(samples), pa.uint64()),
        "size": (np.full(samples, 10), pa.uint64()),
        "width": (rng.integers(100, 4000, samples), pa.uint32()),
        "height": (rng.integers(100, 4000, samples), pa.uint32()),
        "bit_depth": (np.full(samples, 8), pa.uint8()),
        "low": (np.zeros(samples), pa.uint16()),
        "high": (np.full(samples, 255), pa.uint16()),
        "label": (rng.integers(0, 20, samples), pa.int32()),
        "group": (rng.integers(0, samples // 5, samples), pa.int64()),
    }
    splits = pa.array(["train", "val", "test", None]).take(pa.array(rng.integers(0, 4, samples)))
    table = pa.table({name: pa.array(column, type) for name, (column, type) in numbers.items()})
    table = table.append_column("id", ids.filter(pa.array(written))).append_column("split", splits)
    rows = zip(ids, reasons, strict=True)
    names = (Input(str(id), "", f"/scans/{id}.png", "", f"{reason}: a detail") for id, reason in rows)
    write_inputs(folder / "inputs.csv", (), names)
    manifest = {
        "samples": samples,
        "shards": [{"name": "none.tar", "bytes": 1}],
        "classes": [f"class {i}" for i in range(20)],
        "made_with": {"encode": "keep"},
        "formats": {"jpeg": samples},
        "key": "",
        "table": {"sha256": ""},
    }
    return Contents(pa.table(columns, schema=SCHEMA), Samples(folder, manifest["shards"], table), manifest)


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        contents = generated(number, folder)
        peak = before = resident()
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.005):
                peak = max(peak, resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        begun = time.process_time()
        write_report(folder, contents)
        write_private_report(folder / "named.html", folder / "inputs.csv", contents, [])
        seconds = time.process_time() - begun
        done.set()
        watcher.join()
    print(
        f"{number:,} inputs: {seconds:.1f} s of CPU time, {peak - before:.0f} MiB beyond the {before:.0f} of the tables"
    )


if __name__ == "__main__":
    main()
