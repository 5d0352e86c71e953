"""Samples that turned out not to decode, and what stands in for them.

A run goes on when it meets one. The substitute of a sample is the next one that decodes, so it does not depend on when,
or on which rank, a sample was found; the list is kept in a file, so that a resumed run makes the same batches.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fastfgssl.runtime.errors import UserError, file_errors

_HEADER = ("sample", "id", "reason")


class Quarantine:
    """The samples of one archive that a run has found undecodable.

    file: a CSV that every rank appends to; None keeps the list in memory.
    """

    def __init__(self, num_samples: int, file: Path | None = None) -> None:
        self._num_samples = num_samples
        self._file = file
        self.samples: set[int] = set()
        self._load()

    def add(self, sample: int, sample_id: str, reason: str) -> None:
        """Lists a sample; raises `UserError` when none would be left to stand in for it."""
        self._load()
        if sample not in self.samples:
            self.samples.add(sample)
            self._append((sample, *(" ".join(text.split()) for text in (sample_id, reason))))  # a line each
        if len(self.samples) == self._num_samples:
            raise UserError(f"none of the archive's {self._num_samples} images can be decoded; see {self._file}")

    def substitute(self, ids: np.ndarray) -> np.ndarray:
        """`ids` (int64 [B]) with every listed sample replaced by the next sample number that is not listed."""
        if not self.samples:
            return ids
        ids = ids.copy()
        for place in np.flatnonzero(np.isin(ids, list(self.samples))):
            while int(ids[place]) in self.samples:
                ids[place] = (ids[place] + 1) % self._num_samples
        return ids

    def _load(self) -> None:
        """Takes over what other ranks, or an earlier start of this run, have found."""
        if self._file is not None and self._file.exists():
            with file_errors("read", self._file):
                text = self._file.read_text(encoding="utf-8", errors="replace")
            rows = (_parse(line) for line in text.split("\n")[:-1])  # what no line end follows was cut short
            self.samples.update(int(row[0]) for row in rows if len(row) == len(_HEADER) and row[0].isdecimal())

    def _append(self, row: tuple) -> None:
        if self._file is None:
            return
        # lines are short and the file is opened for appending: ranks do not tear each other's lines
        with file_errors("write", self._file):
            before = self._file.read_bytes() if self._file.exists() else b""
            with self._file.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                if not before:
                    writer.writerow(_HEADER)
                elif not before.endswith(b"\n"):
                    file.write("\n")  # ends a line that was cut short: it must not become the start of this one
                writer.writerow(row)


def _parse(line: str) -> list[str]:
    """Cells of a line; none if it holds what a crash of the machine leaves in a file."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []
