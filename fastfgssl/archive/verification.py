"""An archive read from its first byte to its last, and compared with what its manifest and tables say."""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections.abc import Iterator

import numpy as np

from fastfgssl.archive.building.accounting import ACCOUNTING, problems, read_accounting
from fastfgssl.archive.manifest import CHECKSUM_DIFFERS, REPORT, TABLE, Archive
from fastfgssl.archive.manifest_file import read_manifest
from fastfgssl.runtime.files import sha256_of


def verify(archive: Archive) -> list[str]:
    """Reads every byte and returns what is wrong with the archive, a line a problem; nothing if all is well."""
    manifest = read_manifest(archive.path)
    found = [damage] if (damage := _differs(archive, TABLE, manifest["table"])) else []
    table_is_intact = not found
    for shard, facts in enumerate(manifest["shards"]):
        found += _problems_of_shard(archive, shard, facts, table_is_intact)
    if "accounting" in manifest:  # since version 2
        damage = _differs(archive, ACCOUNTING, manifest["accounting"])
        found += (
            [damage] if damage else problems(read_accounting(archive.path), manifest["inputs"], archive.num_samples)
        )
    if "report" in manifest and (damage := _differs(archive, REPORT, manifest["report"])):
        found.append(damage)
    return found


def _differs(archive: Archive, name: str, facts: dict) -> str:
    """What is wrong with a file that is read as a whole; empty if nothing."""
    try:
        return "" if sha256_of(archive.path / name) == facts["sha256"] else f"{name}: {CHECKSUM_DIFFERS}"
    except OSError as error:
        return f"{name}: {error.strerror}"


def _problems_of_shard(archive: Archive, shard: int, facts: dict, table_is_intact: bool) -> Iterator[str]:
    with (
        archive.shard(shard) as path,
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar,
    ):
        if hashlib.sha256(tar).hexdigest() != facts["sha256"]:
            yield f"{facts['name']}: {CHECKSUM_DIFFERS}"
        if not table_is_intact:
            return
        first = int(archive.shard_sizes[:shard].sum())
        ids = np.arange(first, first + int(archive.shard_sizes[shard]))
        rows = archive.columns(ids, ["id", "offset", "size", "crc32"])
        places = list(zip(rows["offset"].tolist(), rows["size"].tolist(), strict=True))
        for number, name, crc32, (offset, size) in zip(ids, rows["id"], rows["crc32"], places, strict=True):
            if zlib.crc32(tar[offset : offset + size]) != crc32:
                yield f"{facts['name']}: sample {number} ({name}) is damaged"
    try:
        index = (archive.path / facts["index"]).read_text().splitlines()[1:]
        listed = [tuple(map(int, line.split()[1:3])) for line in index]
    except (OSError, ValueError):
        listed = None
    if listed != places:
        yield f"{facts['index']}: missing, or not what the table says"
