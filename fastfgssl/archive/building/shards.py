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
from fastfgssl.archive.building.worker import Watch
from fastfgssl.archive.manifest import SHARDS
from fastfgssl.runtime.files import sync_folder

SHARD_BYTES = 256 << 20
EXTENSIONS = {"jpeg": "jpg", "png": "png", "tiff": "tif", "bmp": "bmp", "webp": "webp"}
BLOCK = 512  # of a tar file
_DONE = ".done"  # what a shard is called while it is not in the manifest
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 135), slice(148, 154)  # of a member's header, in USTAR's format
_NAMELESS = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # time, owner and mode are constants
_MOST = 8**11  # bytes of a member, whose size no header can tell


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
    beside: list[bytes] = []  # noqa: RUF012 - never changed in place
    """A member that follows each image, empty for none; none at all if there are no labels to write."""
    beside_extension: str = ""

    @property
    def name(self) -> str:
        return f"{SHARDS}/shard-{self.number:06d}"

    def offsets(self) -> np.ndarray:
        """Where the samples' bytes begin in the tar file, int64 [N]."""
        taken = _taken(self.size.astype(np.int64)) + self._taken_beside()
        return np.cumsum(taken) - taken + BLOCK

    def index_text(self) -> str:
        """The index of DALI's webdataset reader: a line a sample, with its image first."""
        lines = []
        columns = (self.extension, self.offsets(), self.size)
        for place, (extension, offset, size) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            name = f"{self.first + place:09d}"
            line = f"{extension} {offset} {size} {name}.{extension}"
            if beside := self.beside[place] if self.beside else b"":
                after = offset + size + -size % BLOCK + BLOCK
                line += f" {self.beside_extension} {after} {len(beside)} {name}.{self.beside_extension}"
            lines.append(f"{line}\n")
        return f"v1.2 {len(lines)}\n{''.join(lines)}"

    def _taken_beside(self) -> np.ndarray | int:
        if not self.beside:
            return 0
        size = np.array([len(data) for data in self.beside], np.int64)
        return np.where(size > 0, _taken(size), 0)

    def digest(self) -> str:
        """The same for two plans that give the same bytes."""
        columns = (self.size.astype(np.uint64), self.crc32.astype(np.uint32))
        parts = [f"{self.number} {self.first} {','.join(self.extension)} ".encode(), *(c.tobytes() for c in columns)]
        digest = hashlib.sha256(b"".join(parts))
        for data in self.beside:
            digest.update(b"%b %d " % (self.beside_extension.encode(), len(data)) + data)
        return digest.hexdigest()


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
        index.write_text(plan.index_text())
        draft.rename(self._archive / f"{plan.name}.tar")
        shard = {"name": f"{plan.name}.tar", "index": f"{plan.name}.idx", "samples": len(plan.size)} | shard
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


def member_header(name: str, size: int) -> bytes:
    """The header of a tar file's member: that of `tarfile.TarInfo`, which takes longer than to copy a small image.

    name: of at most 100 bytes. Raises ValueError for what does not fit in.
    """
    encoded = name.encode()
    if len(encoded) > _NAME.stop or not 0 <= size < _MOST:
        raise ValueError(f"a tar file has no place for a member {name} of {size} bytes")
    header = bytearray(_NAMELESS)
    header[: len(encoded)] = encoded
    digits = header[_SIZE] = b"%011o" % size
    # it sums up all bytes: the empty name's are 0, the empty size's the digit 0
    sum_ = int(header[_CHECKSUM], 8) + sum(encoded) + sum(digits) - len(digits) * ord("0")
    header[_CHECKSUM] = b"%06o" % sum_
    return bytes(header)


def _taken(size: np.ndarray) -> np.ndarray:
    """Bytes of a tar file that members of these sizes take, with their headers."""
    return BLOCK + size + -size % BLOCK


def _write_tar(plan: ShardPlan, tar: IO[bytes]) -> dict:
    digest, total = hashlib.sha256(), 0

    def write(data: bytes) -> None:
        nonlocal total
        digest.update(data)
        tar.write(data)
        total += len(data)

    def write_member(name: str, data: bytes) -> None:
        write(b"".join((member_header(name, len(data)), data, bytes(-len(data) % BLOCK))))

    columns = (plan.part, plan.offset, plan.size, plan.extension)
    opened = -1
    with ExitStack() as files:
        for place, (part, offset, size, extension) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            if part != opened:  # they come one after another
                files.close()
                source = files.enter_context((plan.folders[part] / IMAGES).open("rb"))
                opened = part
            source.seek(offset)
            data = source.read(size)
            if len(data) != size:
                raise OSError(None, f"{plan.folders[part] / IMAGES} is shorter than it was")
            write_member(f"{plan.first + place:09d}.{extension}", data)
            if plan.beside and plan.beside[place]:
                write_member(f"{plan.first + place:09d}.{plan.beside_extension}", plan.beside[place])
        write(bytes(2 * BLOCK))  # the end of a tar file
    return {"bytes": total, "sha256": digest.hexdigest()}
