"""Files that are there as a whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastfgssl.runtime.errors import file_errors


def expand_home(text: str) -> str:
    """A path, or a URL, as a user typed it, with their home folder for a `~` in front, where no shell has put it."""
    return os.path.expanduser(text)  # noqa: PTH111 - Path's raises for an unknown user, and makes a URL a path


def user_path(path: str | Path) -> Path:
    """`expand_home` of a path. The type of an argument of a command."""
    return Path(expand_home(str(path)))


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, nbytes: int = 0, mode: int = 0o666) -> None:
    """Gives `path` what `write` writes, once all of it is on the disk; until then, and after an error, what it had.

    nbytes: about how many that will be; nothing is begun where the disk has not the room. mode: of a new file, less the
    process's umask, from its first byte on. Raises what the system or `write` raises; nothing half-written is left.
    What is no file, such as /dev/stdout, is written to as it is.
    """
    if _is_special(path):
        with path.open("wb") as stream:
            write(stream)
        return
    path = path.resolve()  # the file, where `path` is a link to it
    partial = _partial(path)
    _require_room(path.parent, nbytes)
    try:
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            partial.chmod(path.stat().st_mode)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync_names(path.parent)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder, whose files move into `folder` when the body ends well, each in the place of one of its name.

    After an error none of them does. Raises what the system or the body raises.
    """
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as made:
        yield Path(made)
        files = sorted(Path(made).iterdir())
        for file in files:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file in files:
            file.replace(folder / file.name)
    sync_names(folder)


def check_writable(path: Path) -> None:
    """Makes the folder of `path` if need be, and raises `UserError` unless `write_whole` can write `path`.

    To be asked before the work that fills it.
    """
    with file_errors("write", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with file_errors("write", path):
        if path.is_dir():
            raise IsADirectoryError(None, "Is a directory")
        if not _is_special(path):
            partial = _partial(path.resolve())
            partial.open("wb").close()
            partial.unlink()


def csv_cells(line: str) -> list[str]:
    """Cells of a line of a CSV file; none if it holds what a crash of the machine leaves in a file, or is empty."""
    if "\0" in line:
        return []
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, whole. Raises `UserError` if that cannot be."""
    with file_errors("write", path):
        write_whole(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _require_room(folder: Path, nbytes: int) -> None:
    """Raises OSError where a disk has less room than that."""
    if nbytes:
        disk = os.statvfs(folder)
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < nbytes:
            free = disk.f_bavail * disk.f_frsize / 2**20
            raise OSError(errno.ENOSPC, f"No space left on device: {nbytes / 2**20:.0f} MiB to write, {free:.0f} free")


def _is_special(path: Path) -> bool:
    """Whether it is there and no file: a device, a pipe."""
    return path.exists() and not path.is_file()


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def sync_names(folder: Path) -> None:
    """Brings the names of a folder to the disk, where the file system can do that."""
    try:
        sync_folder(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def sync_folder(folder: Path) -> None:
    """Brings the names of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
