"""The encoded bytes and facts of samples, by number, read from shards and compared with their checksums.

Bytes are read, not mapped: a shard that is cut, or a disk that fails, while its pages are touched would end the process
by a signal; a read says so.
"""

from __future__ import annotations

import os
import weakref
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastfgssl.archive.damage import UnreadableShard
from fastfgssl.archive.manifest import Archive
from fastfgssl.data.open_files import OPEN_SHARDS, OpenFile
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.patience import patiently


class Reader:
    """Random access to an archive's samples."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._owner = object()
        self._given_up: set[int] = set()  # shards that could not be read, for which nobody waits again
        self._is_away = False  # nothing could be read since one was given up: nor is waited for others
        self._lost: dict[int, str] = {}  # those that cannot be brought here, and why
        weakref.finalize(self, OPEN_SHARDS.release, self._owner)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._archive,)

    def close(self) -> None:
        """Closes the shards; reading opens them again."""
        OPEN_SHARDS.release(self._owner)

    def read(self, ids: np.ndarray) -> list[np.ndarray]:
        """The encoded images of samples `ids` (int64 [B]): B arrays of uint8.

        One whose shard was cut short is shorter than it should be; see `find_damage`. Raises `UserError` if one cannot
        be read, after some tries.
        """
        encoded, unread = self._read(ids)
        if unread:
            raise UserError(next(iter(unread.values())))
        return encoded

    def read_and_check(self, ids: np.ndarray) -> tuple[list[np.ndarray], dict[int, str], dict[int, str]]:
        """What is there of samples `ids` (int64 [B]): B arrays of uint8; then two times a reason by place.

        First of those whose bytes are not those that were stored, then of those that cannot be read, after some tries:
        that may pass. Their arrays are of no use.
        """
        encoded, unread = self._read(ids)
        damage = self.find_damage(ids, encoded)
        return encoded, {place: reason for place, reason in damage.items() if place not in unread}, unread

    def _read(self, ids: np.ndarray) -> tuple[list[np.ndarray], dict[int, str]]:
        """The bytes that there are of each sample, and why there are none of some, by place."""
        rows = self._archive.columns(ids, ("shard", "offset", "size"))
        offsets, sizes = rows["offset"].tolist(), rows["size"].tolist()
        ends = np.cumsum(rows["size"]).tolist()
        buffer = np.empty(ends[-1] if ends else 0, np.uint8)
        encoded = [buffer[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        # in the order of the disk; the system is told of all reads of a shard before the first, so that it can make
        # them at the same time where that helps
        order = np.lexsort((rows["offset"], rows["shard"]))
        present, starts = np.unique(rows["shard"][order], return_index=True)
        unread: dict[int, str] = {}
        for shard, of_shard in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
            places = of_shard.tolist()
            targets = [(encoded[place], offsets[place]) for place in places]
            for place, read in zip(places, self._read_shard(shard, targets), strict=True):
                if isinstance(read, str):
                    unread[place], read = read, 0
                encoded[place] = encoded[place][:read]
        return encoded, unread

    def _read_shard(self, shard: int, targets: list[tuple[np.ndarray, int]]) -> list[int | str]:
        """Reads from a shard into each array; how many bytes there were for each, or why it cannot be read."""
        if shard in self._lost:
            return [self._lost[shard]] * len(targets)
        try:
            with self._archive.shard(shard) as path:
                try:
                    if shard not in self._given_up:
                        act = partial(self._read_from, path, targets)
                        read = act() if self._is_away else patiently(act, f"read {path}", may_pass=_may_pass)
                        self._is_away = False
                        return [*read]
                except OSError:
                    self._given_up.add(shard)
                found = [self._read_one(path, target) for target in targets]
                self._is_away = all(isinstance(read, str) for read in found)
                return found
        except UnreadableShard as error:
            self._lost[shard] = str(error)
            return [str(error)] * len(targets)

    def _read_one(self, path: Path, target: tuple[np.ndarray, int]) -> int | str:
        """Of a shard that cannot be read as a whole: a bad place on a disk takes no more samples than lie there."""
        try:
            return self._read_from(path, [target])[0]
        except OSError as error:
            return f"cannot read {path}: {error.strerror or error}"

    def _read_from(self, path: Path, targets: list[tuple[np.ndarray, int]]) -> list[int]:
        """Reads from a shard into each array, from its offset on; how many bytes there were for each."""
        file = OPEN_SHARDS.get(self._owner, path)
        try:
            for target, offset in targets:
                os.posix_fadvise(file.descriptor, offset, len(target), os.POSIX_FADV_WILLNEED)
            return [_read_into(file, target, offset) for target, offset in targets]
        except OSError:
            OPEN_SHARDS.forget(self._owner, path)
            raise

    def find_damage(self, ids: np.ndarray, encoded: list[np.ndarray]) -> dict[int, str]:
        """What is wrong with `encoded`, the bytes that `read` gave for `ids`: a reason by place, empty if all is well.

        A checksum takes some 0.4 ns a byte, 20 us for a JPEG of 48 KB: less than 1 % of what its views take a CPU.
        """
        rows = self._archive.columns(ids, ("size", "crc32"))
        damage = {}
        for place, (payload, size, crc32) in enumerate(
            zip(encoded, rows["size"].tolist(), rows["crc32"].tolist(), strict=True)
        ):
            if len(payload) < size:
                damage[place] = f"its shard was cut: {size - len(payload)} of its {size} bytes are missing"
            elif zlib.crc32(payload.data) != crc32:
                damage[place] = "its bytes changed since the archive was made"
        return damage

    def names(self, ids: np.ndarray) -> list[str]:
        """What the archive calls the samples."""
        return self._archive.columns(ids, ("id",))["id"].tolist()

    def picture_sizes(self, ids: np.ndarray) -> np.ndarray:
        """Width and height in pixels of the decoded images: int64 [B, 2]."""
        rows = self._archive.columns(ids, ("width", "height"))
        return np.stack((rows["width"], rows["height"]), axis=1).astype(np.int64)

    def windows(self, ids: np.ndarray) -> np.ndarray:
        """Levels that are black and white in each image, float32 [B, 2]; 0 and 0 in one of 8 bits."""
        rows = self._archive.columns(ids, ("bit_depth", "low", "high"))
        windows = np.stack((rows["low"], rows["high"]), axis=1).astype(np.float32)
        return np.where(rows["bit_depth"][:, None] > 8, windows, np.float32(0))

    def labels(self, ids: np.ndarray) -> np.ndarray:
        """Classes of the samples: int64 [B], -1 for one without a label."""
        if not self._archive.has_column("label"):
            return np.full(len(ids), -1)
        return self._archive.columns(ids, ("label",))["label"].astype(np.int64)


def _may_pass(error: Exception) -> bool:
    """Whatever is wrong with a shard, but that it is not there."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def _read_into(file: OpenFile, target: np.ndarray, offset: int) -> int:
    """Reads as many bytes as `target` (uint8 [n]) holds, or there are; returns how many."""
    done = 0
    while done < len(target) and (got := os.preadv(file.descriptor, [target[done:].data], offset + done)):
        done += got
    return done
