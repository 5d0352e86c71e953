"""An archive in an object store, read as if it were here: its shards come to a local disk, within a budget.

DIR/NAME-FINGERPRINT/manifest.json, samples.arrow    fetched once
DIR/NAME-FINGERPRINT/shards/                         those that are or will be needed, `.part` while they come
DIR/NAME-FINGERPRINT/locks/                          who fetches a shard holds its lock alone, who opens it with others

All processes of a machine share DIR, and so do runs on several archives: what was not used for longest goes first.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any

from fastfgssl.archive.damage import UnreadableShard
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.manifest_file import MANIFEST, parse_manifest
from fastfgssl.archive.sources.network import from_server
from fastfgssl.archive.sources.remote import file_system
from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import write_whole

_BLOCK = 8 << 20  # bytes of a shard that are asked for at once
_PART = ".part"
_COUNTING = ".lock"  # who counts what is in the cache holds it, and who changes that
_NAMES = re.compile(r"(samples\.arrow|shards/shard-[0-9]{1,12}\.tar) [0-9a-f]{64}")  # and their checksums


class FetchStopped(Exception):
    """Nobody waits for this shard any more."""


def open_cached(url: str, folder: str | Path, nbytes: int) -> Archive:
    """Opens the archive at `url`, whose shards come into `folder` when they are asked for, at most `nbytes` of them.

    Its table comes as a whole, and is not counted. Raises UserError for a server that does not answer, where there is
    no archive, and for shards of which not two fit.
    """
    url = url.rstrip("/")
    cache = ShardCache(url, Path(folder), nbytes)
    return Archive.open(cache.folder, shards=cache)


class ShardCache:
    """The shards of one archive. Safe to use by threads, and by processes that have `folder` in common."""

    def __init__(self, url: str, root: Path, nbytes: int) -> None:
        self.url, self.nbytes = url, nbytes
        """`nbytes`: of all shards below the root, of this archive or another."""
        self._root = root
        self._system: tuple[int, Any] = (0, None)
        self._opening = Lock()
        with _server_errors(f"{url}/{MANIFEST}"):
            stored = self._read(MANIFEST)
        manifest = parse_manifest(stored, f"{url}/{MANIFEST}")
        table, self._shards = manifest["table"], manifest["shards"]
        if not all(_NAMES.fullmatch(f"{facts['name']} {facts['sha256']}") for facts in (table, *self._shards)):
            # they become paths here, and whoever owns the server has written them
            raise UserError(f"{url}/{MANIFEST} is damaged: it names other files than `fastfgssl prepare` makes")
        largest = max((shard["bytes"] for shard in self._shards), default=0)
        if 2 * largest > nbytes:
            raise UserError(
                f"{url} has shards of {largest / 2**30:.2f} GiB, of which not two fit in a cache of"
                f" {nbytes / 2**30:.2f} GiB: raise data.cache_gib, or prepare it with a smaller --shard-size"
            )
        self.folder = root / f"{url.rpartition('/')[2]}-{table['sha256'][:12]}"
        """As that of an archive, without the shards that are not needed now."""
        with file_errors("write", self.folder):
            for name in ("shards", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        with self._lock(table["name"], fcntl.LOCK_EX), file_errors("write", self.folder):
            path = self.folder / table["name"]
            if not path.exists() or path.stat().st_size != table["bytes"]:
                self._fetch(table, Event())
            if not (self.folder / MANIFEST).exists() or (self.folder / MANIFEST).read_bytes() != stored:
                write_whole(self.folder / MANIFEST, lambda file: file.write(stored))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_system", "_opening")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._system, self._opening = (0, None), Lock()

    @contextmanager
    def present(self, shard: int, stop: Event | None = None) -> Iterator[Path]:
        """The file of a shard, which stays there during the body; waits until it has come.

        Whoever has it open keeps it for as long as it likes. stop: ends the waiting with `FetchStopped`. Raises
        UserError for a server that does not answer for long; UnreadableShard for a shard that is not there, or gives
        other bytes than the manifest tells.
        """
        facts = self._shards[shard]
        path = self.folder / facts["name"]
        while True:
            with self._lock(facts["name"], fcntl.LOCK_SH):
                if path.exists():
                    os.utime(path)  # it is in use
                    yield path
                    return
            with self._lock(facts["name"], fcntl.LOCK_EX), file_errors("write", path):
                if not path.exists():
                    self._make_room(facts["bytes"], path.with_name(path.name + _PART), stop or Event())
                    self._fetch(facts, stop or Event())

    def _fetch(self, facts: dict[str, Any], stop: Event) -> None:
        """Brings one file of the archive, which nobody else brings; twice, if the first time it comes as another."""
        path = self.folder / facts["name"]
        part = path.with_name(path.name + _PART)
        for _ in range(2):
            digest = hashlib.sha256()
            with part.open("r+b" if part.exists() else "wb") as file:
                for start in range(0, facts["bytes"], _BLOCK):
                    if stop.is_set():
                        raise FetchStopped
                    with _server_errors(f"{self.url}/{facts['name']}", missing=UnreadableShard):
                        block = self._read(facts["name"], start, start + _BLOCK)
                    digest.update(block)
                    file.write(block)
                file.truncate()
                os.fdatasync(file.fileno())  # a name in the cache is that of whole contents
            if digest.hexdigest() == facts["sha256"]:
                with _flock(self._root / _COUNTING, fcntl.LOCK_EX):  # it would be missed under both names
                    part.rename(path)
                return
        part.unlink()
        raise UnreadableShard(
            f"{self.url}/{facts['name']} is damaged: it has not the manifest's checksum; copy it again"
        )

    def _make_room(self, nbytes: int, part: Path, stop: Event) -> None:
        """Removes what was not used for longest until `nbytes` fit, and takes them by the size of `part`."""
        while not stop.is_set():
            with _flock(self._root / _COUNTING, fcntl.LOCK_EX):
                files = sorted(_shards_below(self._root), key=lambda file: file[0])
                excess = sum(size for _, size, path in files if path != part) + nbytes - self.nbytes
                for _, size, path in files:
                    if excess > 0 and path != part and _removed(path):
                        excess -= size
                if excess <= 0:
                    with part.open("wb") as file:
                        os.posix_fallocate(file.fileno(), 0, nbytes)  # a full disk says so now
                    return
            time.sleep(0.05)  # all that is there is being opened, or on its way
        raise FetchStopped

    def _read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        with self._opening:
            if self._system[0] != os.getpid():  # its connections are those of the process that made them
                self._system = (os.getpid(), file_system(self.url))
            fs = self._system[1]
        path = f"{fs._strip_protocol(self.url)}/{name}"
        return from_server(lambda: fs.cat_file(path, start=start, end=end))

    def _lock(self, name: str, how: int) -> Any:
        return _flock(self.folder / "locks" / Path(name).name, how)


@contextmanager
def _flock(path: Path, how: int) -> Iterator[None]:
    """Holds a lock that the system takes back when the process ends. Raises BlockingIOError as `how` asks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _server_errors(url: str, missing: type[UserError] = UserError) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise missing(f"{url} does not exist: `fastfgssl prepare` makes an archive to be copied there") from None
    except OSError as error:
        raise UserError(
            f"cannot read {url}: {error.strerror or error}; the same command goes on",
            errno=error.errno or errno.EREMOTEIO,  # what libraries raise has often no number
        ) from error


def _shards_below(root: Path) -> Iterator[tuple[float, int, Path]]:
    """Time of last use, bytes and path of all shards in a cache, of whichever archive."""
    for path in root.glob("*/shards/*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            yield status.st_mtime, status.st_size, path


def _removed(path: Path) -> bool:
    """Whether a shard that nobody opens or brings was removed."""
    lock = path.parents[1] / "locks" / path.name.removesuffix(_PART)
    try:
        with _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            path.unlink(missing_ok=True)
            return True
    except BlockingIOError:
        return False
