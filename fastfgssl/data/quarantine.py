"""Samples that turned out to be damaged, unreadable or not to decode, and what stands in for them.

A run goes on when it meets one, until there are too many. The substitute of a sample is the next intact one by number,
so it does not depend on when, or on which rank, a sample was found; the list is kept in a file, so that a resumed run
makes the same batches. What could not be read is tried again by the next start: a disk or a server may be mended.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import logging
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastfgssl.archive.damage import most_bad, verdict
from fastfgssl.data.reader import Reader
from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import csv_cells, write_whole

log = logging.getLogger(__name__)

_HEADER = ("sample", "id", "reason")
_TOLD_EACH = 20  # samples, of which each is logged; then only when there are twice as many
_LOCK_SECONDS = 2.0
_SHOWN = 3  # samples in a message
_BEYOND = 4096  # samples above the limit that are looked through for a substitute, so that a batch comes to its end
_MAY_PASS = "for now: "
"""What a reason begins with that the next start is not to believe."""


class IntactSamples(NamedTuple):
    """Samples whose bytes are those that were stored."""

    ids: np.ndarray
    """int64 [B]"""
    encoded: list[np.ndarray]
    """Their bytes, uint8."""


class Quarantine:
    """The samples of one archive that a run must not train on. Threads may share it.

    file: a CSV that every rank appends to, unless `writes` is False; None keeps the list in memory. among: int64, the
    samples that are used at all, and may stand in for others; None for all. max_bad_share: of these, above which there
    is a `verdict`.
    """

    def __init__(
        self,
        num_samples: int,
        file: Path | None = None,
        among: np.ndarray | None = None,
        max_bad_share: float = 1.0,
        writes: bool = True,
    ) -> None:
        self._num_samples = num_samples
        self._file, self._writes = file, writes
        self._listed = np.zeros(num_samples, bool)
        self._count = 0
        self._passing = 0  # of these, what the next start tries again
        self._first: list[str] = []  # what is said of the first
        self._used = num_samples if among is None else len(among)
        self._max_bad_share, self._most = max_bad_share, most_bad(self._used, max_bad_share)
        self._unfit = np.zeros(num_samples, bool)  # to stand in for others
        self._asked = f"the archive's {num_samples}" if among is None else f"the {len(among)}"
        if among is not None:
            self._unfit[:] = True
            self._unfit[among] = False
        self._fit = num_samples - int(self._unfit.sum())
        self._read_to = 0  # bytes of the file whose lines are taken over
        self._lock = threading.RLock()
        if file is not None and file.exists():
            with file_errors("read", file), file.open("rb", buffering=0) as opened:
                self._take_over(opened)

    @property
    def samples(self) -> set[int]:
        """The numbers of the listed samples."""
        return set(np.flatnonzero(self._listed).tolist())

    @property
    def count(self) -> int:
        """How many these are."""
        return self._count

    @property
    def share(self) -> float:
        """Of the samples that are used, how many are listed."""
        return self._count / self._used

    @property
    def verdict(self) -> UserError | None:
        """Why these samples are not to be used any further; None while few enough are listed.

        It has an `errno`, that of a disk or server that may be back, where few enough are damaged.
        """
        if self._count <= self._most:
            return None
        with self._lock:
            is_outage = self._count - self._passing <= self._most
            listed = f"; all are in {self._file}" if self._file is not None else ""
            if is_outage:
                remedy = "what cannot be read for now is tried again by the same command"
            else:
                mend = f"copy or prepare the archive again{' and remove that list' if listed else ''}"
                remedy = f"{mend}, or raise data.max_bad_share to go on without them"
            text = verdict(self._count, self._used, self._max_bad_share, self._first, listed, remedy)
            return UserError(text, errno=errno.EIO if is_outage else None)

    def add(self, sample: int, sample_id: str, reason: str, *, may_pass: bool = False) -> None:
        """Lists a sample, then logs it; may_pass: until the next start.

        Raises `UserError` when none would be left to stand in for it, or far too many are listed.
        """
        reason = _MAY_PASS + reason if may_pass else reason
        with self._lock:
            if not self._listed[sample] and self._write(sample, sample_id, reason):
                self._tell(sample, sample_id, reason)
            self._require_one_left()
            if self._count > self._most + _BEYOND and (found := self.verdict):
                raise found

    def substitute(self, ids: np.ndarray) -> np.ndarray:
        """`ids` (int64 [B]) with every listed sample replaced by the next sample number that may stand in for it."""
        with self._lock:
            self._require_one_left()
            ids = ids.copy()
            for place in np.flatnonzero(self._listed[ids]).tolist():
                ids[place] = self._next(int(ids[place]))
            return ids

    def read(self, ids: np.ndarray, reader: Reader) -> IntactSamples:
        """Reads samples `ids` (int64 [B]), or what stands in for them.

        Bytes that are not those that were stored never leave here: their sample is listed, and the next one is read.
        """
        ids = self.substitute(ids)
        encoded: list[np.ndarray] = [np.empty(0, np.uint8)] * len(ids)
        places = np.arange(len(ids))
        while len(places):
            read, damage, unread = reader.read_and_check(ids[places])
            for place, payload in zip(places.tolist(), read, strict=True):
                encoded[place] = payload
            bad = np.array([*damage, *unread], np.int64)
            names = reader.names(ids[places[bad]])
            for at, name in zip(bad.tolist(), names, strict=True):
                reason = damage.get(at) or unread[at]
                self.add(int(ids[places[at]]), name, reason, may_pass=at in unread)
            places = places[bad]
            ids[places] = self.substitute(ids[places])
        return IntactSamples(ids, encoded)

    def _next(self, sample: int) -> int:
        """The first sample number from `sample` on, and around the end, that may stand in for it."""
        while True:
            part = self._unfit[sample : sample + 4096]
            place = int(part.argmin())
            if not part[place]:
                return sample + place
            sample = (sample + len(part)) % self._num_samples

    def _list(self, sample: int, sample_id: str, reason: str) -> None:
        if not self._listed[sample]:
            self._listed[sample] = True
            self._count += 1
            self._passing += reason.startswith(_MAY_PASS)
            if len(self._first) < _SHOWN:
                self._first.append(f"sample {sample} ({sample_id}): {reason}")
            self._fit -= not self._unfit[sample]
            self._unfit[sample] = True

    def _require_one_left(self) -> None:
        if not self._fit:
            where = f"; see {self._file}" if self._file is not None else ""
            none = f"none of {self._asked} images can be decoded{where}: {'; '.join(self._first)}"
            raise self.verdict or UserError(none)

    def _tell(self, sample: int, sample_id: str, reason: str) -> None:
        with suppress(Exception):  # it is listed; what a handler of the log makes of it is not worth the run
            if self._count <= _TOLD_EACH:
                log.warning("sample %d (%s) is left out: %s; the next one stands in for it", sample, sample_id, reason)
            elif self._count & (self._count - 1) == 0:
                log.warning("%d samples are left out by now; the next ones stand in for them", self._count)

    def _take_over(self, file: io.FileIO) -> None:
        """Lists what other ranks, or an earlier start of this run, have found since the file was read last."""
        file.seek(self._read_to)
        text = file.read()
        whole = text[: text.rfind(b"\n") + 1]  # what no line end follows was cut short
        self._read_to += len(whole)
        for line in whole.decode(errors="replace").split("\n"):
            row = csv_cells(line)
            is_whole = len(row) == len(_HEADER) and row[0].isdecimal() and len(row[0]) < 19
            if is_whole and int(row[0]) < self._num_samples:
                self._list(int(row[0]), *row[1:])

    def _write(self, sample: int, sample_id: str, reason: str) -> bool:
        """Lists a sample in the file, too; False if another rank has done so."""
        if self._file is None or not self._writes:
            self._list(sample, sample_id, reason)
            return True
        with file_errors("write", self._file), self._file.open("a+b", buffering=0) as file:
            # What opening for appending guarantees on one machine does not hold between clients of a network file
            # system. A lock does, which also lets them see what others wrote; it goes when the file is closed.
            _lock(file)
            self._take_over(file)
            if self._listed[sample]:
                return False
            self._list(sample, sample_id, reason)
            size = file.seek(0, io.SEEK_END)
            lines = io.StringIO()
            writer = csv.writer(lines, lineterminator="\n")
            if not size:
                writer.writerow(_HEADER)
            elif self._read_to < size:
                lines.write("\n")  # ends a line that was cut short: it must not become the start of this one
            writer.writerow((sample, *(" ".join(text.split()) for text in (sample_id, reason))))  # a line each
            file.write(lines.getvalue().encode(errors="backslashreplace"))
        return True


def forget_unreadable(file: Path) -> None:
    """Takes out of the list of a run that begins anew what may be readable by now; called before ranks open it."""
    with file_errors("read", file):
        lines = file.read_text(errors="surrogateescape").splitlines(keepends=True) if file.exists() else []
    kept = [line for line in lines if not (len(row := csv_cells(line)) == 3 and row[2].startswith(_MAY_PASS))]
    if len(kept) < len(lines):
        stored = "".join(kept).encode(errors="surrogateescape")
        with file_errors("write", file):
            write_whole(file, lambda opened: opened.write(stored))


def _lock(file: io.FileIO) -> None:
    """Locks the file, unless the system cannot, or another holds it for long: no run waits for ever for a list."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        except OSError:
            return
