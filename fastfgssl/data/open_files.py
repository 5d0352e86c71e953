"""Files that are kept open for reading, within what the system lets a process have; one set for the whole process."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from pathlib import Path


class OpenFile:
    """A file opened for reading; closed when nobody refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class OpenFiles:
    """The most recently used files of several owners, at most a third of the descriptors that the process may have."""

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[object, Path], OpenFile] = OrderedDict()
        self._lock = threading.RLock()  # a collection in `get` may call `release`

    def __len__(self) -> int:
        return len(self._files)

    def get(self, owner: object, path: Path) -> OpenFile:
        """The file at `path`. Raises OSError if it cannot be opened."""
        key = (owner, path)
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
                return self._files[key]
            self._keep(_limit() - 1)
            file = self._files[key] = self._open(path)
            return file

    def forget(self, owner: object, path: Path) -> None:
        """Opens the file anew when it is asked for next: a file server that was started anew does not know it."""
        with self._lock:
            self._files.pop((owner, path), None)

    def let_go_of_removed(self) -> None:
        """Closes files whose names are gone: until then they take room on the disk."""
        with self._lock:
            for key in [key for key, file in self._files.items() if os.fstat(file.descriptor).st_nlink == 0]:
                del self._files[key]

    def release(self, owner: object) -> None:
        """Lets go of all files of `owner`."""
        with self._lock:
            for key in [key for key in self._files if key[0] is owner]:
                del self._files[key]

    def _open(self, path: Path) -> OpenFile:
        try:
            return OpenFile(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._files:
                raise
        self._keep(len(self._files) // 2)  # others have taken the descriptors
        return OpenFile(path)

    def _keep(self, count: int) -> None:
        while len(self._files) > count:
            self._files.popitem(last=False)


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft // 3) if soft != resource.RLIM_INFINITY else 1 << 20


OPEN_SHARDS = OpenFiles()
"""Shards that readers have open."""
