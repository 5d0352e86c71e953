"""How long labels of many rows take, and how much memory: `python tests/helpers/label_scale.py ROWS`."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from fastfgssl.archive.labels.assignment import read_labels
from fastfgssl.archive.listing import SCHEMA, Listing
from fastfgssl.archive.sources.folder import FolderSource


def main(rows: int) -> None:
    with TemporaryDirectory() as folder:
        table = Path(folder, "labels.csv")
        with table.open("w") as file:
            file.write("image,label,patient_id,split\n")
            file.writelines(f"p{i // 100:06d}/img{i:08d}.png,class {i % 7},P{i // 4},train\n" for i in range(rows))
        names = [f"p{i // 100:06d}/img{i:08d}.png".encode() for i in range(rows)]
        columns = [
            pa.array(np.zeros(rows), pa.uint32()),
            pa.array(names, pa.large_binary()),
            *(pa.array(np.ones(rows), pa.int64()) for _ in range(2)),
            pa.array(np.zeros(rows, bool)),
            pa.DictionaryArray.from_arrays(pa.nulls(rows, pa.int32()), pa.array([], pa.string())),
        ]
        del names
        listing = Listing([FolderSource(Path(folder))], pa.table(columns, schema=SCHEMA))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, busy = time.perf_counter(), time.process_time()
        labels = read_labels(table, listing)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert labels.rows == rows
        assert not labels.unmatched
        print(f"{rows:,} rows: {seconds:.1f} s ({busy:.1f} of a core), {more:.0f} MiB beyond the listing")


if __name__ == "__main__":
    main(int(sys.argv[1]))
