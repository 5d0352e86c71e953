"""Archives that were damaged after they were made.

`python -m helpers.damage ARCHIVE FOLDER` trains nothing but makes loaders of copies of ARCHIVE in FOLDER, damaged in
each way, and prints a JSON object a case: what a crash of the process would cut short.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.quarantine import Quarantine
from helpers.loader import loader, tensors

WAYS = ("overwritten", "zeroed", "flipped", "cut")
SHARES = (0.01, 0.1, 0.9)
STARTS, STEPS = 5, 4


def damaged_copy(source: Path, copy: Path, way: str, share: float) -> tuple[Archive, set[int]]:
    """A copy of the archive, opened before it was damaged, and the numbers of the samples that are damaged in it."""
    shutil.copytree(source, copy)
    archive = Archive.open(copy)
    samples = np.random.default_rng(0).permutation(archive.num_samples)[: round(share * archive.num_samples) or 1]
    if way == "cut":
        samples = cut_shards(archive, share)
    else:
        for sample in samples.tolist():
            damage_sample(archive, sample, way)
    return archive, set(samples.tolist())


def damage_sample(archive: Archive, sample: int, way: str = "zeroed") -> None:
    shard, offset, size = (int(column[0]) for column in _places(archive, np.array([sample])))
    with archive.shard_path(shard).open("r+b") as file:
        file.seek(offset)
        data = bytearray(file.read(size))
        if way == "overwritten":
            data[:64] = np.random.default_rng(sample).bytes(min(64, size))
        elif way == "zeroed":
            data[:] = bytes(size)
        elif way == "flipped":  # in the entropy-coded part of a JPEG: it goes on decoding, to another picture
            data[-size // 4] ^= 0x10
        file.seek(offset)
        file.write(data)


def cut_shards(archive: Archive, share: float) -> np.ndarray:
    """Cuts each shard in the middle of a sample, so that about `share` of its samples are gone; returns them."""
    ids, gone = np.arange(archive.num_samples), []
    shards, offsets, sizes = _places(archive, ids)
    for shard in range(len(archive.shard_sizes)):
        of_shard = ids[shards == shard]
        lost = of_shard[len(of_shard) - round(share * len(of_shard)) :] if share > 0.05 else of_shard[-1:][: shard == 0]
        if len(lost):
            with archive.shard_path(shard).open("r+b") as file:
                file.truncate(int(offsets[lost[0]] + sizes[lost[0]] // 2))
        gone.append(lost)
    return np.concatenate(gone)


def _places(archive: Archive, ids: np.ndarray) -> list[np.ndarray]:
    rows = archive.columns(ids, ("shard", "offset", "size"))
    return [rows[name].astype(np.int64) for name in ("shard", "offset", "size")]


def run_through(loader) -> list[dict[str, np.ndarray]]:
    """The stream of a loader, as arrays of each batch."""
    with loader:
        return [
            {"ids": batch.ids} | {str(place): view.numpy() for place, view in enumerate(tensors(batch))}
            for batch in loader
        ]


def same(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]], rows: list[np.ndarray] | None = None) -> bool:
    """Whether two streams are alike bit for bit, or some rows of each batch."""
    return len(a) == len(b) and all(
        np.array_equal(x[name][of], y[name][of])
        for x, y, of in zip(a, b, rows or [slice(None)] * len(a), strict=True)
        for name in x
    )


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    whole = run_through(loader(source, stop=STEPS))
    for way in WAYS:
        for share in SHARES:
            copy = folder / f"{way}-{share}"
            archive, damaged = damaged_copy(source, copy, way, share)
            # those that the steps ask for, and those met on the way to a substitute
            met = set()
            for sample in {int(sample) for batch in whole for sample in batch["ids"]}:
                while sample in damaged:
                    met.add(sample)
                    sample = (sample + 1) % archive.num_samples
            known = Quarantine(archive.num_samples)
            for sample in damaged:
                known.add(sample, "", "")
            told = run_through(loader(source, stop=STEPS, quarantine=known))  # intact bytes, and the list beforehand
            intact = [~np.isin(batch["ids"], list(damaged)) for batch in whole]
            for start in range(STARTS):
                listed = copy / f"quarantine-{start}.csv"
                quarantine = Quarantine(archive.num_samples, listed)
                found = run_through(loader(archive, stop=STEPS, quarantine=quarantine))
                lines = listed.read_text().splitlines()[1:] if listed.exists() else []
                case = {
                    "case": f"{way} {share}",
                    "batches": len(found),
                    "is_that_of_a_list_beforehand": same(found, told),
                    "intact_rows_are_untouched": same(found, whole, intact),
                    "listed": sorted(int(line.split(",")[0]) for line in lines),
                    "met": sorted(met),
                }
                print(json.dumps(case), flush=True)
    # the batch and the place at which DALI's decoder ended the process nearly every time
    archive, damaged = damaged_copy(source, folder / "large", "overwritten", 0.01)
    first = next(iter(damaged))
    for _ in range(STARTS):
        batches = loader(archive, stop=2, batch_size=200, ids=lambda step: (first + np.arange(200)) % 84, threads=4)
        found = run_through(batches)
        print(json.dumps({"case": "batch of 200", "batches": len(found), "first": int(found[0]["ids"][0] - first)}))


if __name__ == "__main__":
    main()
