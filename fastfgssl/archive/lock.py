"""A folder that one process at a time may write into."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path
from typing import IO, NoReturn

from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import is_at
from fastfgssl.runtime.lock import LOCK as LOCK
from fastfgssl.runtime.lock import read_holder, write_holder

log = logging.getLogger(__name__)


def lock_folder(folder: Path, *, shared: bool = False) -> IO:
    """Makes `folder` if need be and locks it until the file that is returned, `LOCK` in it, is closed.

    The system closes it when the process ends, however it does. shared: others that ask for it shared may hold it too.
    Raises `UserError` if another process holds the lock, and names it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
        has_locks = True
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            _refuse(folder, file)
        except OSError:
            has_locks = False
            holder = read_holder(file.fileno())
            if holder is not None and holder.is_alive(is_free=False):
                _refuse(folder, file)
            log.info("%s is on a file system without locks: no process of another machine is kept out", folder)
        # whoever held it may have renamed or removed the folder since it was opened
        if not has_locks or is_at(folder / LOCK, file.fileno()):
            if not shared:
                write_holder(file.fileno())
            return file
        file.close()


def _refuse(folder: Path, file: IO) -> NoReturn:
    holder = read_holder(file.fileno())
    file.close()
    by = f" ({holder})" if holder else ""
    raise UserError(f"{folder} is being written by another process{by}: wait for it, or stop it")


def becomes_sole(lock: IO) -> bool:
    """Whether nobody else holds a folder's lock that was taken as a shared one: it is then this process's alone."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
