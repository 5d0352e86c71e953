"""Files that are in memory alone, for what reads files."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastfgssl.archive.sources.base import Entry


class InMemory:
    """A file source of one file."""

    root = Path("/nowhere")
    name = "nowhere"

    def __init__(self, name: str, data: bytes) -> None:
        self.only, self._data = name.encode(), data

    def open(self, name: bytes) -> BinaryIO:
        return io.BytesIO(self._data)

    def entries(self) -> Iterator[Entry]:
        yield Entry(self.only, len(self._data), 0)

    def read(self, entries: Sequence[Entry], alive: object = None) -> Iterator[bytes]:
        yield from (self._data for _ in entries)

    def where(self, name: bytes) -> str:
        return f"/nowhere/{name!r}"


@contextmanager
def file_in_memory(name: str, data: bytes) -> Iterator[Path]:
    """A file in memory, by a path."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        yield path
