"""How long training waits for an archive in a bucket, beside the same archive in a folder.

python tests/helpers/cache_waiting.py ARCHIVE [--latency 0.1] [--step 0.5] [--steps 60] [--shards 6]

Serves ARCHIVE by moto over HTTP, each answer after `--latency` seconds, and takes its batches with `--step` seconds of
other work after each, as a GPU's step would be. The cache has room for `--shards` of the largest shards.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fastfgssl.archive.cache import open_cached
from fastfgssl.archive.manifest import Archive
from helpers.bucket import put_folder, serve_bucket
from helpers.loader import loader


def waiting(archive: Archive, steps: int, step: float) -> tuple[float, float, float]:
    """Seconds of waiting for the first batch and for all the others, and seconds of all."""
    waits = []
    begun = time.perf_counter()
    with loader(archive, stop=steps) as batches:
        for _ in range(steps):
            asked = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - asked)
            time.sleep(step)
    return waits[0], sum(waits[1:]), time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--shards", type=int, default=6)
    args = parser.parse_args()
    local = Archive.open(args.archive)
    with serve_bucket() as bucket, tempfile.TemporaryDirectory() as cache:
        url = put_folder(bucket, args.archive, "archive")
        bucket.latency = args.latency
        budget = args.shards * int(local.shard_bytes.max())
        remote = open_cached(url, cache, budget)
        largest = local.shard_bytes.max() / 2**20
        print(f"{len(local.shard_sizes)} shards of up to {largest:.2f} MiB, of which {args.shards} fit")
        for name, archive in {"folder": local, "bucket": remote, "folder again": local, "bucket again": remote}.items():
            first, rest, all_of_it = waiting(archive, args.steps, args.step)
            share = 100 * rest / all_of_it
            print(f"{name}: first batch {first:.2f} s, then {share:.2f} % of {all_of_it:.1f} s waited")
        fetched = [path for path in bucket.read if path.endswith(".tar")]
        print(f"{len(fetched)} shards fetched, {bucket.calls} requests")


if __name__ == "__main__":
    main()
