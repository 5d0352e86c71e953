"""The archive that a run adds to: what it holds stays under the numbers that it has, in the same shards."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastfgssl.archive.building.accounting import DUPLICATE, FILTERED, SCHEMA, WRITTEN, outcome_codes, read_accounting
from fastfgssl.archive.building.keys import Key
from fastfgssl.archive.building.plan import failed, pixel_hashes
from fastfgssl.archive.images.hashes import EARLIER_PIXEL_HASH, PIXEL_HASH, PIXEL_HASHES
from fastfgssl.archive.manifest import SHARDS, TABLE, Archive
from fastfgssl.archive.manifest_file import read_manifest
from fastfgssl.runtime.errors import UserError

_HEX = 32  # digits of an id


class Base:
    """What is there already; nothing, without a `path`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.shards: list[dict] = []
        self.classes: list[str] | None = None
        self.num_samples = 0
        self.manifest: dict = {}
        self.pixel_hash = PIXEL_HASH
        """One of `hashes.PIXEL_HASHES`, by which its samples and those that are added are compared."""
        self.table: pa.Table | None = None
        self.accounting = SCHEMA.empty_table()
        if path is None:
            return
        self.manifest = read_manifest(path)
        if "accounting" not in self.manifest:
            raise UserError(
                f"{path} is of an earlier version, which names its images by their paths: --overwrite makes it anew"
            )
        Archive.open(path)  # refuses what is damaged
        self.pixel_hash = self.manifest.get("pixel_hash", EARLIER_PIXEL_HASH)
        if self.pixel_hash not in PIXEL_HASHES:
            raise UserError(f"{path} compares pixels by {self.pixel_hash}, which this program does not know: update it")
        self.shards, self.classes = self.manifest["shards"], self.manifest["classes"]
        self.num_samples = self.manifest["samples"]
        self.table = pa.ipc.open_file((path / TABLE).read_bytes()).read_all()
        self.accounting = read_accounting(path)

    def check_key(self, key: Key, file: Path) -> None:
        """Raises UserError if the archive's ids are those of another key: nothing would be known."""
        if self.path is not None and self.manifest["key"] != key.fingerprint:
            raise UserError(f"{self.path} was made under another key than {file}: give that one with --key")

    def known(self, ids: np.ndarray, *, retry: bool) -> np.ndarray:
        """Which of some ids, uint64 [N, 2], need not be read again: bool [N].

        retry: those that could not be read or were quarantined do.
        """
        ours = binary_ids(self.accounting["id"])
        if not len(ours):
            return np.zeros(len(ids), bool)
        again = ours[failed(outcome_codes(self.accounting)), 0] if retry else ours[:0, 0]
        return np.isin(ids[:, 0], ours[:, 0]) & ~np.isin(ids[:, 0], again)

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the samples' pixels, uint64 [K, 2], and the samples' numbers, int64 [K]."""
        written = self.accounting.filter(pa.array(outcome_codes(self.accounting) == WRITTEN))
        return pixel_hashes(written["pixels"]), written["sample"].to_numpy()

    def groups(self) -> set[int]:
        """Of its samples."""
        if self.table is None or "group" not in self.table.schema.names:
            return set()
        return set(self.table["group"].drop_null().unique().to_pylist())

    def id_and_group(self, sample: int) -> tuple[str, int | None]:
        """Those of a sample; None for no group."""
        assert self.table is not None
        group = self.table["group"][sample].as_py() if "group" in self.table.schema.names else None
        return self.table["id"][sample].as_py(), group

    def name_groups(self, groups: dict[int, int]) -> None:
        """Gives a group to samples that had none, by their numbers."""
        if not groups:
            return
        assert self.table is not None
        none = pa.nulls(self.num_samples, pa.int64())
        column = (self.table["group"] if "group" in self.table.schema.names else none).to_pylist()
        for sample, group in groups.items():
            assert column[sample] is None, "a group of an archive stays"
            column[sample] = group
        kept = [name for name in self.table.schema.names if name != "group"]
        self.table = self.table.select(kept).append_column("group", pa.array(column, pa.int64()))

    def accounted(self, ids: pa.Array) -> tuple[pa.Table, set[tuple[str, str]]]:
        """The accounting without what `ids`, which are taken again, had failed at; and what of them had not failed.

        The latter are ids and parts that are accounted for already: they must not be once more.
        """
        if not len(self.accounting):
            return self.accounting, set()
        again = np.isin(binary_ids(self.accounting["id"])[:, 0], binary_ids(ids)[:, 0])
        codes = outcome_codes(self.accounting)
        settled = self.accounting.filter(pa.array(again & np.isin(codes, (WRITTEN, DUPLICATE, FILTERED))))
        pairs = zip(settled["id"].to_pylist(), settled["part"].to_pylist(), strict=True)
        return self.accounting.filter(pa.array(~(again & failed(codes)))), set(pairs)

    def link_shards(self, archive: Path) -> None:
        """Puts its shards into another archive, without copying them where the file system can."""
        assert self.path is not None or not self.shards
        for shard in self.shards:
            for name in (shard["name"], shard["index"]):
                source, target = Path(self.path or "", name), archive / name
                target.unlink(missing_ok=True)
                try:
                    os.link(source, target)
                except OSError:
                    shutil.copyfile(source, target)
        (archive / SHARDS).mkdir(parents=True, exist_ok=True)


def binary_ids(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Ids, hexadecimal digits, as uint64 [N, 2]."""
    return np.frombuffer(bytes.fromhex("".join(ids.to_pylist())), np.uint64).reshape(-1, 2)


def hexadecimal_ids(ids: np.ndarray) -> pa.Array:
    """Ids, uint64 [N, 2], as hexadecimal digits."""
    digits = np.ascontiguousarray(ids).tobytes().hex().encode()
    places = pa.array(np.arange(0, len(digits) + 1, _HEX), pa.int64())
    text = pa.LargeStringArray.from_buffers(len(ids), places.buffers()[1], pa.py_buffer(digits))
    return text.cast(pa.string())
