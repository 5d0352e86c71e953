"""Shards: tar files of images, and their indices, written by workers from the parts.

The same samples in the same order give the same bytes: no name, time or owner of the machine gets in.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fastfgssl.archive.building.parts import IMAGES
from fastfgssl.archive.building.workers import Watch
from fastfgssl.archive.manifest import SHARDS
from fastfgssl.runtime.files import sync_folder

SHARD_BYTES = 256 << 20
EXTENSIONS = {"jpeg": "jpg", "png": "png", "tiff": "tif", "bmp": "bmp", "webp": "webp"}
BLOCK = 512  # of a tar file
_DONE = ".done"  # what a shard is called while it is not in the manifest


class ShardPlan(NamedTuple):
    """The samples of one shard: where their bytes lie, columns of N."""

    number: int
    """Of the shard."""
    first: int
    """Number of its first sample."""
    folders: list[Path]
    """The parts that it takes from."""
    part: np.ndarray
    """Number in `folders`, int64."""
    offset: np.ndarray
    """In the part's `images.bin`, uint64."""
    size: np.ndarray
    """Bytes, uint64."""
    extension: np.ndarray
    """A value of `EXTENSIONS`, str."""
    crc32: np.ndarray

    @property
    def name(self) -> str:
        return f"{SHARDS}/shard-{self.number:06d}"

    def offsets(self) -> np.ndarray:
        """Where the samples' bytes begin in the tar file, int64 [N]."""
        size = self.size.astype(np.int64)
        taken = BLOCK + size + -size % BLOCK
        return np.cumsum(taken) - taken + BLOCK

    def digest(self) -> str:
        """The same for two plans that give the same bytes."""
        columns = (self.size.astype(np.uint64), self.crc32.astype(np.uint32))
        parts = [f"{self.number} {self.first} {','.join(self.extension)} ".encode(), *(c.tobytes() for c in columns)]
        return hashlib.sha256(b"".join(parts)).hexdigest()


class ShardWriter:
    """Writes shards into `archive`: what a worker does. A shard that an earlier run has written is left as it is."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive

    def __call__(self, plan: ShardPlan, watch: Watch) -> tuple[int, dict]:
        """The shard's number and its entry in the manifest. Raises OSError if it cannot be written."""
        done = self._archive / SHARDS / f".{plan.number:06d}{_DONE}"
        digest = plan.digest()
        if done.exists():
            written = json.loads(done.read_text())
            if written["plan"] == digest:
                return plan.number, written["shard"]
        draft = self._archive / SHARDS / f".{plan.number:06d}.draft"
        with draft.open("wb") as file:
            shard = _write_tar(plan, file)
            file.flush()
            os.fsync(file.fileno())
        index = self._archive / f"{plan.name}.idx"
        index.unlink(missing_ok=True)  # it may be a link to that of an archive that stays
        lines = [
            f"{extension} {offset} {size} {plan.first + place:09d}.{extension}\n"
            for place, (extension, offset, size) in enumerate(
                zip(plan.extension.tolist(), plan.offsets().tolist(), plan.size.tolist(), strict=True)
            )
        ]
        index.write_text(f"v1.2 {len(lines)}\n{''.join(lines)}")
        draft.rename(self._archive / f"{plan.name}.tar")
        shard = {"name": f"{plan.name}.tar", "index": f"{plan.name}.idx", "samples": len(lines)} | shard
        draft.write_text(json.dumps({"plan": digest, "shard": shard}))
        sync_folder(done.parent)
        draft.rename(done)
        return plan.number, shard


def keep_only(archive: Path, shards: Iterable[dict]) -> None:
    """Removes all but `shards`, entries of the manifest, once they are written."""
    wanted = {Path(shard[name]).name for shard in shards for name in ("name", "index")}
    for path in (archive / SHARDS).iterdir():
        if path.name not in wanted:
            path.unlink()


def _write_tar(plan: ShardPlan, tar: IO[bytes]) -> dict:
    digest, total = hashlib.sha256(), 0

    def write(data: bytes) -> None:
        nonlocal total
        digest.update(data)
        tar.write(data)
        total += len(data)

    columns = (plan.part, plan.offset, plan.size, plan.extension)
    opened = -1
    with ExitStack() as files:
        for place, (part, offset, size, extension) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            if part != opened:  # they come one after another
                files.close()
                source = files.enter_context((plan.folders[part] / IMAGES).open("rb"))
                opened = part
            header = tarfile.TarInfo(f"{plan.first + place:09d}.{extension}")  # time, owner and mode are constants
            header.size = size
            write(header.tobuf(tarfile.USTAR_FORMAT))
            source.seek(offset)
            data = source.read(size)
            if len(data) != size:
                raise OSError(None, f"{plan.folders[part] / IMAGES} is shorter than it was")
            write(data)
            write(bytes(-size % BLOCK))
        write(bytes(2 * BLOCK))  # the end of a tar file
    return {"bytes": total, "sha256": digest.hexdigest()}
