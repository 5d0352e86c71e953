"""What of all parts goes into the archive, and where: decided in columns, before a byte is copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.building.accounting import DUPLICATE, FAILED, FILTERED, QUARANTINED, SKIPPED, UNREADABLE, WRITTEN
from fastfgssl.archive.building.parts import SCHEMA, read_part
from fastfgssl.archive.listing import Listing

_IMAGE = -1  # the outcome of an image until it is known whether it repeats another
_CODES = {
    "image": _IMAGE,
    "filtered": FILTERED,
    "quarantined": QUARANTINED,
    "skipped": SKIPPED,
    "unreadable": UNREADABLE,
}
_TOLD = ("changes", "notes")
_LEFT = ("entry", "preview", "thumbnail", *_TOLD)  # in the parts
_PARTS = 64  # of which the rows are copied together, so that nothing else of their files stays in memory


class DonePart(NamedTuple):
    """A part on the disk, and the rows of the listing that its chunk has."""

    folder: Path
    rows: np.ndarray


@dataclass
class Inputs:
    """What became of inputs, in the order of the listing: columns of N rows."""

    row: np.ndarray
    """Of the listing, int64; a file of several images has several."""
    outcome: np.ndarray
    """A number of `accounting.OUTCOMES`, int8."""
    sample: np.ndarray
    """The sample's number, or that of the one it repeats; -1 for none. int64."""
    table: pa.Table
    """What the parts say, see `parts.SCHEMA`; nulls for what was not read."""
    part: np.ndarray
    """Number of the part, int64; -1 for none."""
    at: np.ndarray
    """Row of the part, int64; -1 for none."""
    changed: dict[str, Counter[str]] = field(default_factory=dict)
    """`changes` and `notes`: how often each is said of images."""
    examples: dict[str, int] = field(default_factory=dict)
    """The first row of the listing that each of them was said of."""

    def keep(self, which: np.ndarray) -> None:
        """Leaves out all rows but `which`, bool [N]."""
        self.row, self.outcome, self.sample, self.part, self.at = (
            column[which] for column in (self.row, self.outcome, self.sample, self.part, self.at)
        )
        self.table = self.table.filter(pa.array(which))


def gather(listing: Listing, parts: Sequence[DonePart], skipped: np.ndarray) -> Inputs:
    """All that parts hold, and a row for each of the entries `skipped` (rows of the listing) that nobody reads."""
    tables, rows, numbers, places = [], [], [], []
    changed: dict[str, Counter[str]] = {name: Counter() for name in _TOLD}
    examples: dict[str, int] = {}
    for number, part in enumerate(parts):
        batch = read_part(part.folder)
        of_listing = part.rows[batch["entry"].to_numpy()]
        for name in _TOLD:
            lengths = pc.fill_null(pc.list_value_length(batch[name]), 0).to_numpy()
            for at in np.flatnonzero(lengths).tolist():
                for text in batch[name][at].as_py():
                    changed[name][text] += 1
                    examples.setdefault(text, int(of_listing[at]))
        tables.append(pa.Table.from_batches([batch]).drop_columns(_LEFT))
        rows.append(of_listing)
        numbers.append(np.full(len(batch), number))
        places.append(np.arange(len(batch)))
        if (number + 1) % _PARTS == 0:
            tables[-_PARTS:] = [pa.concat_tables(tables[-_PARTS:]).combine_chunks()]
    schema = pa.schema([item for item in SCHEMA if item.name not in _LEFT])
    unread = pa.table([pa.nulls(len(skipped), item.type) for item in schema], schema=schema)
    kinds = listing.table["kind"].take(pa.array(skipped)).cast(pa.string())
    damaged = listing.table["damaged"].take(pa.array(skipped))
    for name, column in (("reason", kinds), ("outcome", pc.if_else(damaged, "quarantined", "skipped"))):
        unread = unread.set_column(schema.get_field_index(name), schema.field(name), column)
    table = pa.concat_tables([*tables, unread.cast(schema)])
    none = np.full(len(skipped), -1)
    row_of, part_of, place_of = (
        np.concatenate([*columns, last]).astype(np.int64)
        for columns, last in ((rows, skipped), (numbers, none), (places, none))
    )
    order = np.argsort(row_of, kind="stable")
    if (np.diff(row_of) < 0).any():  # not where every input is an image
        table = table.take(pa.array(order))
    codes = pc.index_in(table["outcome"], pa.array(list(_CODES))).to_numpy()
    outcome = np.array(list(_CODES.values()), np.int8)[codes]
    sample = np.full(len(order), -1)
    return Inputs(row_of[order], outcome, sample, table, part_of[order], place_of[order], changed, examples)


def number_samples(
    inputs: Inputs,
    first: int,
    known: tuple[np.ndarray, np.ndarray],
    *,
    keep_duplicates: bool,
    drop: Sequence[tuple[int, int, float]] = (),
) -> None:
    """Decides of each image whether it becomes a sample, numbered from `first`, or repeats one: by its pixels.

    known: hashes of the pixels of samples that are there already, uint64 [K, 2], and their numbers. drop: pairs, as
    `find_near_duplicates` gives them, of which the later repeats the earlier, if that one is kept itself: a chain of
    pairs may lead far from what it began with.
    """
    images = np.flatnonzero(inputs.outcome == _IMAGE)
    inputs.outcome[images] = WRITTEN
    if not len(images):
        return
    known_pixels, known_samples = known
    pixels = np.concatenate([known_pixels, pixel_hashes(inputs.table["pixels"].take(pa.array(images)))])
    original = np.arange(len(pixels)) if keep_duplicates else first_of_its_kind(pixels)
    dropped = set()
    place_of_known = np.argsort(known_samples)
    for pair in drop:  # in the order of the later: what becomes of an earlier one is settled by then
        earlier, later = (
            int(place_of_known[first + one]) if one < 0 else len(known_pixels) + int(np.searchsorted(images, one))
            for one in pair[:2]
        )
        if original[later] == later and earlier not in dropped:
            original[later] = original[earlier]
            dropped.add(later)
    own = original == np.arange(len(pixels))
    own[: len(known_pixels)] = False
    number = np.concatenate([known_samples, np.zeros(len(images), np.int64)])
    number[own] = np.arange(first, first + own.sum())
    inputs.sample[images] = number[original][len(known_pixels) :]
    inputs.outcome[images[~own[len(known_pixels) :]]] = DUPLICATE


def first_images(inputs: Inputs, known: np.ndarray) -> np.ndarray:
    """Numbers of the images among `inputs` whose pixels no earlier one has, and none of `known`, uint64 [K, 2]."""
    images = np.flatnonzero(inputs.outcome == _IMAGE)
    if not len(images):
        return images
    hashes = np.concatenate([known, pixel_hashes(inputs.table["pixels"].take(pa.array(images)))])
    own = first_of_its_kind(hashes) == np.arange(len(hashes))
    return images[own[len(known) :]]


def same_pixels(inputs: Inputs, known: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of samples, by their numbers, of the same pixels, which are there if duplicates are kept.

    known: see `number_samples`.
    """
    written = np.flatnonzero(inputs.outcome == WRITTEN)
    known_pixels, known_samples = known
    pixels = np.concatenate([known_pixels, pixel_hashes(inputs.table["pixels"].take(pa.array(written)))])
    samples = np.concatenate([known_samples, inputs.sample[written]])
    first = first_of_its_kind(pixels)
    repeats = np.flatnonzero(first != np.arange(len(first)))
    repeats = repeats[repeats >= len(known_pixels)]
    return list(zip(samples[first[repeats]].tolist(), samples[repeats].tolist(), strict=True))


def pixel_hashes(column: pa.ChunkedArray) -> np.ndarray:
    """Hashes of 16 bytes, none of them null, as uint64 [N, 2]."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # of no chunk
        return np.empty((0, 2), np.uint64)
    data = whole.buffers()[1]
    return np.frombuffer(data, np.uint64, 2 * len(whole), 16 * whole.offset).reshape(-1, 2)


def first_of_its_kind(rows: np.ndarray) -> np.ndarray:
    """Of each row of uint64 [N, 2] the number of the first row that is equal to it, int64 [N]."""
    order = np.lexsort((rows[:, 1], rows[:, 0]))  # stable: equal rows stay in order
    new = np.ones(len(rows), bool)
    new[1:] = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    first = np.empty(len(rows), np.int64)
    first[order] = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    return first


def shard_bounds(sizes: np.ndarray, shard_bytes: int) -> np.ndarray:
    """Where shards begin and end among samples of these sizes, int64 [S + 1].

    A shard takes samples up to `shard_bytes` bytes of images, but at least one.
    """
    ends = np.cumsum(sizes.astype(np.int64))
    bounds = [0]
    while bounds[-1] < len(sizes):
        begin = bounds[-1]
        before = int(ends[begin - 1]) if begin else 0
        bounds.append(max(begin + 1, int(np.searchsorted(ends, before + shard_bytes, side="right"))))
    return np.array(bounds)


def failed(outcome: np.ndarray) -> np.ndarray:
    """Which inputs another try may help: bool [N]."""
    return np.isin(outcome, FAILED)
