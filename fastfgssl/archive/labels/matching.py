"""Which image a table means by a path or a name: of a million cells and a million images at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.listing import Listing
from fastfgssl.archive.sources.base import IMAGE_SUFFIXES

NONE, SEVERAL = -1, -2
_ODD = r"^/|//|(^|/)\.\.?(/|$)|/$|^$"  # absolute, or not as a path is spelled

_SUFFIX = f"(?i)({'|'.join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))})$"


class Finder:
    """Finds the images of a listing by what the cells of a table, in the folder `beside`, call them.

    A cell is a path relative to a source or to `beside`, or absolute, or a name as in `ImageFile.name`; or a file name,
    with or without its suffix, or with that of another format, if only one image has it. Where none of it is there, a
    cell with backslashes is a path as Windows spells it.
    """

    def __init__(self, listing: Listing, beside: Path) -> None:
        self._folders = list(dict.fromkeys(map(str, [*listing.roots, beside.resolve()])))
        paths, names = [], []
        for _, batch in listing.batches(listing.images):
            for number, source in enumerate(listing.sources):
                of_source = batch["name"].filter(pc.equal(batch["source"], number))
                if len(of_source):
                    paths.append(_joined(os.fsencode(source.where(b"")), of_source))
                    names.append(_shown(listing, number, of_source))
        self._paths = pa.chunked_array(paths, pa.large_binary()).combine_chunks()
        self._names = pa.chunked_array(names, pa.large_binary()).combine_chunks()
        self._by_name: tuple[pa.Array, np.ndarray, np.ndarray] | None = None

    def __call__(self, cells: pa.ChunkedArray) -> np.ndarray:
        """The image that each cell means, numbered as in `listing.images`: int64, `NONE` or `SEVERAL` if none does."""
        cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
        found = _index(cells.cast(pa.large_binary()), self._names)
        odd = pc.match_substring_regex(cells, _ODD)
        plain = np.flatnonzero(~odd.to_numpy(zero_copy_only=False))
        texts = cells.take(pa.array(plain)).cast(pa.large_binary())
        for folder in self._folders:
            spelled = _index(_joined(os.fsencode(folder) + b"/", texts), self._paths)
            found[plain] = _agreed(found[plain], spelled)
        for place in np.flatnonzero(odd.to_numpy(zero_copy_only=False)).tolist():
            spelled = _index(pa.array(list(self._spellings(cells[place].as_py())), pa.large_binary()), self._paths)
            for index in spelled:
                found[[place]] = _agreed(found[[place]], np.array([index]))
        unmatched = np.flatnonzero(found == NONE)
        if len(unmatched):
            found[unmatched] = self._of_name(cells.take(pa.array(unmatched)))
        unmatched = np.flatnonzero(found == NONE)
        if len(unmatched):  # files that were given another format since the table was made
            found[unmatched] = self._of_name(pc.replace_substring_regex(cells.take(pa.array(unmatched)), _SUFFIX, ""))
        with_backslash = pc.match_substring(cells, "\\").to_numpy(zero_copy_only=False)
        of_windows = np.flatnonzero((found == NONE) & with_backslash)
        if len(of_windows):
            found[of_windows] = self(pc.replace_substring(cells.take(pa.array(of_windows)), "\\", "/"))
        return found

    def _spellings(self, cell: str) -> Iterator[bytes]:
        for folder in self._folders:
            yield os.fsencode(os.path.normpath(f"{folder}/{cell}" if not cell.startswith("/") else cell))

    def _of_name(self, cells: pa.Array) -> np.ndarray:
        if self._by_name is None:
            base = pc.replace_substring_regex(self._paths, rb"(?s)^.*/", b"")
            stem = pc.replace_substring_regex(base, rb"(?s)(.)\.[^.]*$", rb"\1")
            keys = pa.concat_arrays([base, stem]).dictionary_encode()
            index = keys.indices.to_numpy()
            count = np.bincount(index, minlength=len(keys.dictionary))
            first = np.full(len(count), len(index))
            np.minimum.at(first, index, np.arange(len(index)))
            self._by_name = keys.dictionary, count, first % max(1, len(base))
        names, count, first = self._by_name
        at = _index(cells.cast(pa.large_binary()), names)
        return np.where(at == NONE, NONE, np.where(count[at] == 1, first[at], SEVERAL))


def _index(cells: pa.Array, among: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.index_in(cells, among), NONE).to_numpy(zero_copy_only=False).astype(np.int64)


def _agreed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What two ways to read a cell find: the one that finds something, or `SEVERAL` if they find different images."""
    both = np.where(one == other, one, SEVERAL)
    return np.where(one == NONE, other, np.where(other == NONE, one, both))


def _joined(prefix: bytes, names: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(prefix, pa.large_binary()), names, pa.scalar(b"", pa.large_binary()))


def _shown(listing: Listing, source: int, names: pa.Array) -> pa.Array:
    """Names as they are shown: those that are no UTF-8 escaped."""
    try:
        names.cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.array([listing.shown(source, name).encode() for name in names.to_pylist()], pa.large_binary())
    return _joined(f"{listing.sources[source].name}/".encode(), names) if len(listing.sources) > 1 else names
