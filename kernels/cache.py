"""The folder of compiled libraries: one process fills it, and nothing is taken from it that others could have put in.

What it holds is code that runs as this user: neither a folder nor a file is taken that others own or may write. It is
compared with its checksum before it is loaded: a library that was cut short would end the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_DRAFT = "building-"


def folders() -> list[Path]:
    """The folder that was chosen, or one in the home folder; then one of this user in /tmp, unless others made it.

    None for a user without a home in whose place others have been.
    """
    chosen = os.environ.get("FASTFGSSL_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/fastfgssl"
    expanded = os.path.expanduser(chosen)  # noqa: PTH111 - Path's raises where there is no home
    # absolute: the loader of libraries looks for a name without a slash in the system's folders
    found = [] if expanded.startswith("~") else [Path(expanded).absolute()]
    own = Path(tempfile.gettempdir()) / f"fastfgssl-{os.getuid()}"
    with suppress(OSError):
        own.mkdir(mode=0o700, exist_ok=True)
        status = own.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            found.append(own)
    return found


def open_folder(folder: Path) -> None:
    """Makes it if need be. Raises OSError where it cannot be made, or is not this user's alone to fill."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)  # whatever the umask leaves to a group
    if not is_own(folder):
        reason = "others own it or may write there, and could have their code run as you; if it is yours, chmod go-w it"
        raise PermissionError(None, reason)


def is_own(path: Path) -> bool:
    """Whether nobody but this user, or the machine's administrator, has made it or may write to it."""
    status = path.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & _BY_OTHERS


def is_whole(path: Path) -> bool:
    """Whether a library is there as it was built, and by nobody else."""
    checksum = checksum_file(path)
    try:
        return is_own(path) and is_own(checksum) and checksum.read_text() == _digest(path)
    except OSError:
        return False


def checksum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the body, where the file system has locks; else two build the same."""
    with (folder / "lock").open("w") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in folder.glob(f"{_DRAFT}*"):  # by one that was killed
                shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A folder to build `path` in."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_DRAFT) as name:
        yield Path(name)


def keep(made: Path, path: Path) -> None:
    """Moves what was built in a draft to its place, with its checksum."""
    checksum = made.with_name("checksum")
    checksum.write_text(_digest(made))
    for file, target in ((made, path), (checksum, checksum_file(path))):
        with file.open("rb+") as written:
            os.fsync(written.fileno())
        file.chmod(file.stat().st_mode & ~_BY_OTHERS)
        file.replace(target)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
