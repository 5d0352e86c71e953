"""A list of files: a path a line, relative to the list's folder or absolute."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fastfgssl.archive.sources.base import Entry, SourceOptions
from fastfgssl.archive.sources.folder import FolderSource
from fastfgssl.runtime.errors import file_errors


class ListSource(FolderSource):
    """The files that a list names, in its order; those that are not there are entries that cannot be read.

    Their names are those that they have as entries of the list's folder. Whoever made the list has chosen them, so that
    links are followed wherever they lead.
    """

    def __init__(self, path: Path, options: SourceOptions | None = None) -> None:
        super().__init__(path, options)
        self.only = None
        self._stays_within = False
        self._list = path

    def entries(self) -> Iterator[Entry]:
        seen: set[bytes] = set()
        with file_errors("read the list", self._list), self._list.open("rb") as file:
            for number, line in enumerate(file):
                path = line.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf" if number == 0 else b"")
                if not path.strip():
                    continue
                name = os.path.normpath(path).removeprefix(os.fsencode(self.root) + b"/")
                digest = hashlib.blake2b(name, digest_size=8).digest()
                if digest not in seen:  # a path that is there twice is one file
                    seen.add(digest)
                    yield self._named(name)

    def _named(self, name: bytes) -> Entry:
        if kind := self._kind(name):
            return Entry(name, 0, 0, kind)
        try:
            facts = os.stat(self._path(name))  # noqa: PTH116 - in bytes
        except (OSError, ValueError):
            return Entry(name, 0, 0)  # reading it says why
        if not stat.S_ISREG(facts.st_mode):
            return Entry(name, 0, 0, "not a regular file")
        return Entry(name, facts.st_size, facts.st_mtime_ns)

    def where(self, name: bytes) -> str:
        return os.path.join(self.root, os.fsdecode(name))  # noqa: PTH118 - spelled as in the list, which pathlib would not keep

    def _path(self, name: bytes) -> bytes:
        return os.path.join(os.fsencode(self.root), name)  # noqa: PTH118 - in bytes, of which pathlib knows nothing
