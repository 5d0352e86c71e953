"""Whether a node of a cluster sees the files that this machine sees."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastfgssl.archive.listing import Listing
from fastfgssl.archive.outcome import Unusable
from fastfgssl.archive.sources.base import Contents, Entry, Source
from fastfgssl.runtime.errors import in_a_line

_CANDIDATES = 64  # of a source, the smallest of which is read for comparison
_PAUSES = (0.0, 1.0, 4.0)  # seconds: a file system behind a network may show what is new a little later


class _Sample(NamedTuple):
    """An entry that every node must be able to read."""

    source: Source
    entry: Entry
    digest: bytes
    """SHA-256 of its bytes."""


@dataclass(frozen=True)
class SharedFiles:
    """What is asked of a node; it is pickled, and called there."""

    parts: Path
    """The folder that every node writes to."""
    token: Path
    """A file in a folder there, which no other file system has."""
    secret: str
    """What the token holds."""
    samples: list[_Sample]

    def __call__(self) -> str:
        """What hinders this node, as what follows its name in a sentence; empty for nothing."""
        for pause in _PAUSES:
            time.sleep(pause)
            if not (why := self._cannot_write()):
                break
        else:
            return (
                f"does not see {self.parts} as this machine does ({why}): --out must lie on a file system that all"
                " nodes share, under one path, where the user that Ray runs as may write"
            )
        for source, entry, digest in self.samples:
            read = next(source.read([entry]))
            if isinstance(read, (OSError, Unusable)):
                why = getattr(read, "strerror", None) or in_a_line(read)
            elif _digest(read) == digest:
                continue
            else:
                why = "other bytes"
            return (
                f"cannot read {source.where(entry.name)} as this machine does ({why}): sources must be there on every"
                " node, under one path, and credentials for servers in each node's own environment"
            )
        return ""

    def _cannot_write(self) -> str:
        try:
            if self.token.read_text() != self.secret:
                return "another file is there"
            with tempfile.TemporaryFile(dir=self.token.parent):
                return ""
        except OSError as error:
            return error.strerror or str(error)


@contextmanager
def shared_files(parts: Path, listing: Listing, rows: np.ndarray) -> Iterator[SharedFiles]:
    """What nodes must see that make the parts of `rows` of the listing; the token is there as long as the body runs.

    Of each source a small entry is read, if this machine can read it.
    """
    folder = Path(tempfile.mkdtemp(prefix=".", dir=parts))  # a draft, for whoever finds it after a kill
    try:
        token, secret = folder / "token", secrets.token_hex(16)
        token.write_text(secret)
        yield SharedFiles(parts, token, secret, list(_samples(listing, rows)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _samples(listing: Listing, rows: np.ndarray) -> Iterator[_Sample]:
    of_row = listing.table["source"].to_numpy()[rows]
    for number in np.unique(of_row).tolist():
        candidates = rows[of_row == number][:_CANDIDATES]
        entries = []
        for _, batch in listing.batches(candidates):
            columns = (batch[name].to_pylist() for name in ("name", "size", "version"))
            entries += [Entry(*values) for values in zip(*columns, strict=True)]
        source, entry = listing.sources[number], min(entries, key=lambda entry: entry.size)
        read = next(source.read([entry]))
        if not isinstance(read, (OSError, Unusable)):
            yield _Sample(source, entry, _digest(read))


def _digest(contents: Contents) -> bytes:
    return hashlib.sha256(contents if isinstance(contents, bytes) else b"".join(contents)).digest()
