"""CPU time in which a container of many small members is listed, as `prepare` lists it.

python tests/helpers/listing_rate.py [.tar.gz|.tar|.tar.zst|.zip] [MEMBERS] [BYTES]
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

from fastfgssl.archive.listing import find_images
from fastfgssl.archive.sources.base import SourceOptions
from helpers.containers import container_of


def main() -> None:
    given = sys.argv[1:]
    suffix = given[0] if given else ".tar.gz"
    members, size = (
        int(given[place]) if len(given) > place else default for place, default in ((1, 100_000), (2, 700))
    )
    dice = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"scans{suffix}")
        files = {f"patient{n // 100:05d}/image{n:07d}.jpg": dice.randbytes(size) for n in range(members)}
        path.write_bytes(container_of(suffix, files))
        del files
        begun = time.process_time()
        listing = find_images([path], SourceOptions(depth=3))
        seconds = time.process_time() - begun
    print(f"{len(listing):,} members of {size} bytes in a {suffix}: {len(listing) / seconds:,.0f} a second of CPU time")


if __name__ == "__main__":
    main()
