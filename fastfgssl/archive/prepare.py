"""From sources to an archive: worker processes verify the images, this one writes them in order."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from fastfgssl.archive.image import PreparedImage, TrainingDecoder, Unusable, prepare_image
from fastfgssl.archive.shards import SHARD_BYTES, ArchiveWriter, Sample, check_output
from fastfgssl.archive.sources import Entry, Facts, find_images, read_labels
from fastfgssl.errors import UserError

MIB = 1 << 20
AHEAD = 4  # images for each worker that may be in work or wait for an earlier one: what bounds the memory


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `prepare` is asked to do."""

    sources: Sequence[Path]
    """Folders and single files."""
    out: Path
    """The archive's folder; it must not exist unless `overwrite`, and lie in none of the sources."""
    labels: Path | None = None
    """A CSV, see `sources.read_labels`."""
    group_column: str | None = None
    """Its column that says which images belong together."""
    short_side: int | None = None
    """Larger images are made smaller, to this many pixels on their short side."""
    workers: int | None = None
    """Processes; default: one a core."""
    shard_size: float = SHARD_BYTES / MIB
    """MiB of images in a shard, at most, unless a single one has more."""
    max_pixels: int = 100_000_000
    """Larger images are quarantined without decoding them: small files can claim any size."""
    overwrite: bool = False
    """Replace the archive at `out`, once the new one is complete."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("give at least one source: a folder, or an image file")
        for name in ("short_side", "workers", "shard_size", "max_pixels"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name.replace('_', '-')} must be above 0, not {value}")
        if self.group_column is not None and self.labels is None:
            raise UserError("group-column names a column of the labels: give --labels too")
        out = self.out.resolve()
        for source in (path.resolve() for path in self.sources):
            if out == source or source in out.parents or out in source.parents:
                raise UserError(f"the archive {self.out} and the source {source} must not contain each other")


@dataclass(kw_only=True)
class Summary:
    """What `prepare` did."""

    samples: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    """Images encoded anew, by reason; one may have several."""
    notes: Counter[str] = field(default_factory=Counter)
    """Other things to know of images that are in the archive."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """Images left out, by kind of reason; the archive's `quarantine.csv` has each."""
    other_files: Counter[str] = field(default_factory=Counter)
    """Files that are no images by their name, by suffix."""
    labelled: int = 0
    classes: int = 0
    unmatched: list[str] = field(default_factory=list)
    """Rows of the labels that match no image, or several."""
    shards: int = 0
    bytes: int = 0
    """Size of all shards."""
    seconds: float = 0.0


class Step(NamedTuple):
    """How far it has come."""

    done: int
    total: int
    quarantined: int


def prepare(options: Options, on_progress: Callable[[Step], None] = lambda step: None) -> Summary:
    """Makes the archive and calls `on_progress` after each image.

    Raises UserError for bad input and for whatever hinders the work, such as a full disk or a worker that is killed.
    No archive is left then, nor after any other exception.
    """
    start = time.monotonic()
    check_output(options.out.resolve(), options.overwrite)  # before minutes go into finding the images
    found = find_images(options.sources)
    labels = read_labels(options.labels, found, options.group_column) if options.labels else None
    summary = Summary(other_files=found.other_files)
    if labels:
        summary.unmatched = labels.unmatched
        summary.classes = len(labels.classes)
    writer = ArchiveWriter(
        options.out,
        classes=labels.classes if labels else None,
        short_side=options.short_side,
        shard_bytes=int(options.shard_size * MIB),
        overwrite=options.overwrite,
    )
    results = in_order(
        _Verification(options.short_side, options.max_pixels), found.entries, options.workers or available_cores()
    )
    with writer, closing(results):
        for done, (entry, result) in enumerate(zip(found.entries, results, strict=True), start=1):
            if isinstance(result, Unusable):
                writer.quarantine(entry.id, entry.path, str(result))
                summary.quarantined[str(result).split(":")[0]] += 1
            else:
                facts = labels.facts.get(entry.id) if labels else None
                writer.add(_sample(entry, result, facts))
                summary.changed.update(result.changes)
                summary.notes.update(result.notes)
            on_progress(Step(done, len(found.entries), summary.quarantined.total()))
        manifest = writer.commit()
    summary.samples = manifest["samples"]
    summary.labelled = manifest["labelled"]
    summary.shards = len(manifest["shards"])
    summary.bytes = sum(shard["bytes"] for shard in manifest["shards"])
    summary.seconds = time.monotonic() - start
    return summary


def _sample(entry: Entry, image: PreparedImage, facts: Facts | None) -> Sample:
    return Sample(
        entry.id,
        image.data,
        image.format,
        image.width,
        image.height,
        image.bit_depth,
        *(facts or Facts(None, None, None)),
    )


def available_cores() -> int:
    """Cores that this process may use, which a scheduler may have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Verification:
    """What a worker does with an entry: returns the image, or what is wrong with it."""

    def __init__(self, short_side: int | None, max_pixels: int) -> None:
        self._limits = {"short_side": short_side, "max_pixels": max_pixels}
        self._decoder: TrainingDecoder | None = None  # made in the worker

    def __call__(self, entry: Entry) -> PreparedImage | Unusable:
        self._decoder = self._decoder or TrainingDecoder()
        try:
            data = entry.read()
        except OSError as error:
            return Unusable(f"cannot be read: {error.strerror}")
        try:
            with _quiet():
                return prepare_image(data, self._decoder, **self._limits)
        except Unusable as unusable:
            return unusable


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what C libraries write to file descriptor 2 off the user's screen: the quarantine list tells it better."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection


def in_order(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[Any]:
    """Yields function(item) for each item, in order, computed by `workers` processes.

    A result waits for the earlier ones, so at most `AHEAD` results for each worker exist at a time. The processes end
    with the generator, and by themselves if this process is killed. Raises UserError if a worker is killed.
    """
    with _ignored_interrupt():  # Ctrl-C reaches every process of the terminal: workers inherit that they ignore it
        pool = [_start(function) for _ in range(min(workers, len(items)))]
    try:
        idle = list(pool)
        busy: dict[Connection, tuple[_Worker, int]] = {}
        finished: dict[int, Any] = {}
        given = due = 0
        while due < len(items):
            while idle and given < min(len(items), due + AHEAD * len(pool)):
                worker = idle.pop()
                try:
                    worker.pipe.send(items[given])
                except OSError:
                    raise _death(worker, items[given]) from None
                busy[worker.pipe] = worker, given
                given += 1
            for pipe in wait(list(busy)):
                worker, index = busy.pop(pipe)
                try:
                    finished[index] = pipe.recv()
                except (EOFError, OSError):
                    raise _death(worker, items[index]) from None
                idle.append(worker)
            while due in finished:
                yield finished.pop(due)
                due += 1
    finally:
        for worker in pool:
            worker.process.kill()  # it holds nothing that would have to be put in order
        for worker in pool:
            worker.process.join()
            worker.pipe.close()


def _start(function: Callable[[Any], Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of pyarrow's and rich's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the end of the worker is the end of the pipe
    return _Worker(process, ours)


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    while True:
        try:
            item = pipe.recv()
        except (EOFError, ConnectionError):  # the parent is gone
            return
        result = function(item)
        with suppress(ConnectionError):
            pipe.send(result)


def _death(worker: _Worker, item: Any) -> Exception:
    worker.process.join()
    code = worker.process.exitcode
    if code >= 0:
        return RuntimeError(f"a worker failed at {item}; its traceback is above")
    return UserError(
        f"a worker was killed by {signal.Signals(-code).name} at {item}: if memory ran out, take fewer --workers "
        "or a lower --max-pixels; if it happens again at that file, move the file away"
    )


@contextmanager
def _ignored_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python sets signals in the main thread only
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
