"""From sources to an archive: worker processes verify the images, this one writes them in order."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from fastfgssl.archive.image import ImageSettings, TrainingDecoder, prepare_file
from fastfgssl.archive.labels import Facts, Labels, labels_of_folders, read_labels
from fastfgssl.archive.labels_presets import PRESETS, read_preset
from fastfgssl.archive.outcome import PreparedImage, Unusable
from fastfgssl.archive.shards import SHARD_BYTES, ArchiveWriter, Sample, check_output
from fastfgssl.archive.sources import Entry, Found, find_images
from fastfgssl.archive.workers import in_order
from fastfgssl.runtime.environment import available_cores
from fastfgssl.runtime.errors import UserError, require_one_of

MIB = 1 << 20
_LABELS = ("labels", "labels_preset", "labels_from")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What `prepare` is asked to do."""

    sources: Sequence[Path]
    """Folders and single files."""
    out: Path
    """The archive's folder; it must not exist unless `overwrite`, and lie in none of the sources."""
    labels: Path | None = None
    """A CSV, see `labels.read_labels`."""
    group_column: str | None = None
    """Its column that says which images belong together."""
    labels_preset: str | None = None
    """A challenge whose tables lie below the sources or beside them: a key of `labels_presets.PRESETS`."""
    labels_from: Literal["folders"] | None = None
    """folders: an image's class is the folder it lies in, see `labels.labels_of_folders`."""
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
        if self.labels_preset is not None:
            require_one_of("labels-preset", self.labels_preset, PRESETS)
        if self.labels_from is not None:
            require_one_of("labels-from", self.labels_from, ("folders",))
        given = [f"--{name.replace('_', '-')}" for name in _LABELS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} each say what images show: give one of them")
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
    """Files that are no images by their name, by suffix, or by the pattern that leaves them out."""
    labelled: int = 0
    classes: int = 0
    unmatched: list[str] = field(default_factory=list)
    """Rows of the labels that match no image, or several."""
    missing: str = ""
    """Parts of a challenge that are not there, and where to get them."""
    shards: int = 0
    bytes: int = 0
    """Size of all shards."""
    seconds: float = 0.0


class Progress(NamedTuple):
    """How far it has come."""

    done: int
    total: int
    quarantined: int


def prepare(options: PrepareOptions, on_progress: Callable[[Progress], None] = lambda progress: None) -> Summary:
    """Makes the archive and calls `on_progress` after each image.

    Raises UserError for bad input and for whatever hinders the work, such as a full disk or a worker that is killed.
    No archive is left then, nor after any other exception.
    """
    start = time.monotonic()
    check_output(options.out.resolve(), options.overwrite)  # before minutes go into finding the images
    preset = PRESETS[options.labels_preset] if options.labels_preset else None
    found = find_images(
        options.sources, leave_out=preset.leave_out if preset else (), advice=preset.advice if preset else ""
    )
    labels = _read_labels(options, found)
    summary = Summary(other_files=found.other_files)
    if labels:
        summary.unmatched, summary.missing = labels.unmatched, labels.missing
        summary.classes = len(labels.classes)
    writer = ArchiveWriter(
        options.out,
        classes=labels.classes if labels else None,
        short_side=options.short_side,
        shard_bytes=int(options.shard_size * MIB),
        overwrite=options.overwrite,
    )
    results = in_order(
        _Verification(ImageSettings(short_side=options.short_side, max_pixels=options.max_pixels, pages="first")),
        found.entries,
        options.workers or available_cores(),
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
            on_progress(Progress(done, len(found.entries), summary.quarantined.total()))
        manifest = writer.commit()
    summary.samples = manifest["samples"]
    summary.labelled = manifest["labelled"]
    summary.shards = len(manifest["shards"])
    summary.bytes = sum(shard["bytes"] for shard in manifest["shards"])
    summary.seconds = time.monotonic() - start
    return summary


def _read_labels(options: PrepareOptions, found: Found) -> Labels | None:
    if options.labels_preset:
        return read_preset(options.labels_preset, found)
    if options.labels_from:
        return labels_of_folders(found)
    return read_labels(options.labels, found, options.group_column) if options.labels else None


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


class _Verification:
    """What a worker does with an entry: returns the image, or what is wrong with it."""

    def __init__(self, settings: ImageSettings) -> None:
        self._settings = settings
        self._decoder: TrainingDecoder | None = None  # made in the worker

    def __call__(self, entry: Entry) -> PreparedImage | Unusable:
        self._decoder = self._decoder or TrainingDecoder()
        try:
            data = entry.read()
        except OSError as error:
            return Unusable(f"cannot be read: {error.strerror}")
        with _quiet():
            return next(prepare_file(data, self._decoder, self._settings))  # the first page of several


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
