"""Where an archive appears: as a whole or not at all, in nobody else's place, and again after a kill.

The work is done in a folder beside the archive's, or in it where it is a mount point, whose place no folder can take.
What is there when a run is killed, is what the next one goes on from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastfgssl.archive.building.accounting import ACCOUNTING, read_accounting
from fastfgssl.archive.lock import LOCK, becomes_sole, lock_folder
from fastfgssl.archive.manifest import QUARANTINE, REPORT, SHARDS, TABLE
from fastfgssl.archive.manifest_file import MANIFEST, read_manifest
from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import sync_folder

LISTING, PARTS, ARCHIVE = "listing.arrow", "parts", "archive"
_OF_ARCHIVE = (
    TABLE,
    ACCOUNTING,
    QUARANTINE,
    REPORT,
    SHARDS,
    MANIFEST,
)  # the manifest last: what makes a folder an archive
_OF_WORK = {LISTING, PARTS, ARCHIVE, LOCK}
_WITHIN = {".partial", ".replaced", "lost+found"}  # of a mount point


class Place:
    """The folder of an archive, `out`, and the folder of the work on it."""

    def __init__(self, out: Path, *, overwrite: bool = False) -> None:
        self.out = out.resolve()
        self._overwrite = overwrite
        with file_errors("write", out):
            self.is_mount = self.out.is_mount()
            """Whether another disk begins there, whose place no folder can take: the work is done in it."""
        self.work = self._neighbour("partial")
        """Holds `LISTING`, `PARTS` and `ARCHIVE` while an archive is made."""
        self.archive = self.work / ARCHIVE
        """Becomes the archive at `publish()`."""
        self._replaced = self._neighbour("replaced")
        self._ended = False

    @property
    def parts(self) -> Path:
        return self.work / PARTS

    def check(self) -> None:
        """Raises UserError unless an archive may be written to `out`, and what is in its way is ours."""
        for leftover in (self.work, self._replaced):
            if leftover.exists() and not _holds_only(leftover, {*_OF_ARCHIVE, *_OF_WORK}):
                raise UserError(f"{leftover} is in the way and no archive: move it away")
        if not self.out.exists() or self._replaced.exists():
            return
        if not self.out.is_dir():
            raise UserError(f"{self.out} is a file: choose another --out")
        names = {path.name for path in self.out.iterdir()} - _WITHIN
        if MANIFEST not in names and names <= set(_OF_ARCHIVE) and (not names or self.is_mount):
            return  # empty, or killed while it was published
        if MANIFEST not in names and not self._overwrite:
            raise UserError(
                f"{self.out} holds other files and no archive: choose an empty folder or a new one as --out"
            )
        read_manifest(self.out)
        if not _holds_only(self.out, {*_OF_ARCHIVE, *(_WITHIN if self.is_mount else ())}):
            raise UserError(f"{self.out} holds other files than an archive's: move them away, or choose another --out")

    @contextmanager
    def held(self, *, shared: bool = False) -> Iterator[None]:
        """Holds the folder of the work, which stays after an error if parts are in it.

        shared: beside other processes that only make parts. Whatever the system refuses is a UserError.
        """
        with file_errors("write", self.work):
            self.check()
            lock = lock_folder(self.work, shared=shared)
        with lock:
            try:
                self.work.chmod(0o700)  # listings and parts know the names of files
                if not shared:
                    self._recover()
                self.parts.mkdir(exist_ok=True)
                yield
            except OSError as error:
                raise UserError(
                    f"cannot write the archive {self.out}: {error.strerror or error}", errno=error.errno
                ) from error
            finally:
                with suppress(OSError):  # it must not hide the error that has ended the work
                    empty = not self._ended and not any(self.parts.glob("[!.]*"))
                    if empty and (not shared or becomes_sole(lock)):
                        shutil.rmtree(self.work, ignore_errors=True)
                    lock.truncate(0)  # nobody holds it who could be named

    def holds_archive(self) -> bool:
        return (self.out / MANIFEST).exists()

    def replaced_ids(self) -> list[str]:
        """Ids of the inputs of the archive that goes; none if it stays, is of an earlier version, or cannot be read."""
        if not self._overwrite or not (self.out / ACCOUNTING).exists():
            return []
        try:
            return read_accounting(self.out)["id"].to_pylist()
        except UserError:
            return []

    def begin_archive(self) -> None:
        """Makes `self.archive` afresh but for its shards, which may be those of a run that was killed."""
        (self.archive / SHARDS).mkdir(parents=True, exist_ok=True)
        for path in self.archive.iterdir():
            if path.is_file():
                path.unlink()

    def publish(self) -> None:
        """Moves the complete archive to its place, and ends the work."""
        for folder, _, files in os.walk(self.archive):
            for name in files:  # a rename may reach the disk before the bytes do
                with Path(folder, name).open("rb") as file:
                    os.fsync(file)
            sync_folder(Path(folder))
        self.check()  # again: hours may have passed
        if self.is_mount:
            if self.holds_archive():
                self._replaced.mkdir(exist_ok=True)
                _move(self.out, self._replaced, reversed(_OF_ARCHIVE))
            _move(self.archive, self.out, _OF_ARCHIVE)
        else:
            if self.holds_archive():
                self.out.rename(self._replaced)
            try:
                self.archive.rename(self.out)
            except BaseException:
                if self._replaced.exists():
                    self._replaced.rename(self.out)
                raise
        sync_folder(self.out.parent)
        shutil.rmtree(self._replaced, ignore_errors=True)
        self.leave()

    def leave(self) -> None:
        """Ends the work without an archive: nothing is to be gone on with."""
        shutil.rmtree(self.work)
        self._ended = True

    def _recover(self) -> None:
        """Undoes what was half done when a run was killed."""
        for path in self.work.iterdir():
            if path.name not in _OF_WORK:  # of an earlier version
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for draft in self.parts.glob(".*"):
            shutil.rmtree(draft, ignore_errors=True)  # a worker on another machine may end a moment after its run
        if self.holds_archive():
            shutil.rmtree(self._replaced, ignore_errors=True)
        elif self.is_mount:
            whole = (self._replaced / TABLE).exists()  # the last to move there: only then does the new archive come in
            for name in _OF_ARCHIVE if whole or not self._replaced.exists() else ():
                path = self.out / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            _move(self._replaced, self.out, _OF_ARCHIVE)
            if self._replaced.exists():
                self._replaced.rmdir()
        elif self._replaced.exists():
            self._replaced.rename(self.out)

    def _neighbour(self, what: str) -> Path:
        return self.out / f".{what}" if self.is_mount else self.out.with_name(f"{self.out.name}.{what}")


def _holds_only(folder: Path, names: set[str]) -> bool:
    return (
        folder.is_dir()
        and {path.name for path in folder.iterdir()} <= names
        and all(path.name.startswith(("shard-", ".")) for path in folder.glob(f"{SHARDS}/*"))
    )


def _move(source: Path, target: Path, names: Iterator[str] | tuple[str, ...]) -> None:
    for name in names:
        if (source / name).exists():
            (source / name).rename(target / name)
