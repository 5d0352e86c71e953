"""What is known of new samples, beside those that an archive holds already: label, group, and the split they go to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.building.accounting import WRITTEN
from fastfgssl.archive.building.base import Base
from fastfgssl.archive.building.keys import Key
from fastfgssl.archive.building.plan import Inputs, first_of_its_kind, pixel_hashes, same_pixels
from fastfgssl.archive.building.tables import SampleLabels
from fastfgssl.archive.labels.drawing import OPEN, draw_splits, read_shares, units_of
from fastfgssl.archive.labels.facts import EntryLabels
from fastfgssl.archive.options import PrepareOptions


def labels_of_samples(
    options: PrepareOptions,
    base: Base,
    inputs: Inputs,
    names: pa.Array,
    said: EntryLabels | None,
    alike: Sequence[tuple[int, int, float]],
    key: Key,
) -> tuple[SampleLabels, int]:
    """What is known of the new samples: by labels, by headers, by pairs that are `alike`, and by drawing.

    alike: see `thumbnails.Alike`. Samples of `base` that they lead to get a group if they had none. Returns also how
    many pairs have different groups nevertheless, because both are of groups that `base` has.
    """
    written = inputs.outcome == WRITTEN
    of_new = pa.array(written)
    found = SampleLabels.none(int(written.sum())) if said is None else said.of(inputs.row[written], key)
    found = found.with_patients(inputs.table["patient"].filter(of_new).combine_chunks(), key)
    numbers = inputs.sample - base.num_samples
    pairs = [(one if one < 0 else int(numbers[one]), int(numbers[two])) for one, two, _ in alike]
    if options.near_duplicates == "group":
        same = same_pixels(inputs, base.pixels())
        pairs += [(one - base.num_samples, two - base.num_samples) for one, two in same]
    joined, apart = found.joined(pairs, names.filter(of_new), key, base)
    if options.split is None:
        return joined, apart
    pixels = pixel_hashes(inputs.table["pixels"].filter(of_new))
    drawn = _splits_of_new(read_shares(options.split), options.by, options.seed, base, found, joined, pixels)
    return joined._replace(split=drawn), apart


def _splits_of_new(
    shares: Mapping[str, float],
    by: Literal["group", "image"],
    seed: int,
    base: Base,
    said: SampleLabels,
    joined: SampleLabels,
    pixels: np.ndarray,
) -> pa.Array:
    """The split of each of N new samples, by its name.

    by: what is never divided, groups or only images of the same pixels. said, joined: what is known of the new samples,
    before and after groups were joined; samples that share a group in either stay together. pixels: uint64 [N, 2].
    """
    known, numbers = base.pixels()
    hashes = np.concatenate([known[np.argsort(numbers)], pixels])
    links = [first_of_its_kind(hashes)]
    splits = _with_base(base, "split", pa.nulls(len(pixels), pa.string()))
    given = pc.index_in(splits, pa.array(list(shares))).fill_null(OPEN).to_numpy().astype(np.int64)
    if by == "group":
        before, after = (_with_base(base, "group", labels.group).fill_null(-1).to_numpy() for labels in (said, joined))
        links += [before, after]
        given = _as_its_group(given, before, base.num_samples)
    names = _with_base(base, "label", said.label)
    classes = pc.index_in(names, pa.array(sorted(set(names.drop_null().unique().to_pylist())), pa.string()))
    units = units_of(len(hashes), *links)
    drawn = draw_splits(shares, units, classes.fill_null(-1).to_numpy(), hashes, given, seed)
    return pa.array(list(shares)).take(pa.array(drawn[base.num_samples :]))


def _with_base(base: Base, name: str, new: pa.Array) -> pa.Array:
    """A column of the archive's samples, labels by their names, and of those that are new."""
    if base.table is None or name not in base.table.schema.names:
        old = pa.nulls(base.num_samples, new.type)
    else:
        old = base.table[name]
    if name == "label" and base.classes is not None:
        old = pa.array(base.classes, pa.string()).take(old.combine_chunks())
    return pa.chunked_array([*(old.chunks if isinstance(old, pa.ChunkedArray) else [old]), new]).combine_chunks()


def _as_its_group(given: np.ndarray, groups: np.ndarray, num_known: int) -> np.ndarray:
    """With the split of a group that is there already for whatever is new in it, also if others were joined with it."""
    there, first = np.unique(groups[:num_known], return_index=True)
    if not len(there):
        return given
    at = np.searchsorted(there, groups).clip(max=len(there) - 1)
    follows = (given == OPEN) & (groups != -1) & (there[at] == groups)
    return np.where(follows, given[first[at]], given)
