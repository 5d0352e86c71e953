"""A folder that one process at a time may write into."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from fastfgssl.runtime.errors import UserError

LOCK = ".lock"


def lock_folder(folder: Path, *, shared: bool = False) -> IO:
    """Makes `folder` if need be and locks it until the file that is returned, `LOCK` in it, is closed.

    The system closes it when the process ends, however it does. shared: others that ask for it shared may hold it too.
    Raises `UserError` if another process holds the lock.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"{folder} is being written by another process: wait for it, or stop it") from None
        except OSError:  # a file system without locks
            return file
        # whoever held it may have renamed or removed the folder since it was opened
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
                return file
        file.close()


def becomes_sole(lock: IO) -> bool:
    """Whether nobody else holds a folder's lock that was taken as a shared one: it is then this process's alone."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
