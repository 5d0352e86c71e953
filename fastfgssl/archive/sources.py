"""What the user hands in: the image files found below the sources, and the table that says what they show.

A source yields entries: an `id` that names the image in the archive, and `read()` for its bytes.
"""

from __future__ import annotations

import csv
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fastfgssl.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp"})
GROUP_COLUMNS = ("group", "patient_id", "patient", "lesion_id")


class Entry(NamedTuple):
    """One image file."""

    id: str
    """Path relative to its source, with `/`; if there are several sources, after the source's name. Valid UTF-8."""
    path: str
    """Where it lies: absolute, as the file system spells it."""

    def read(self) -> bytes:
        """The file's bytes. Raises OSError, also for what is no file: opening a named pipe would wait for ever."""
        path = Path(self.path)
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(None, "not a regular file")
        return path.read_bytes()

    def __str__(self) -> str:
        return self.path


class Found(NamedTuple):
    """What lies below the sources."""

    roots: list[Path]
    """The folders that paths are relative to, absolute and without symbolic links."""
    entries: list[Entry]
    """In the order of the sources, then of the relative path's bytes: the same on every file system."""
    other_files: Counter[str]
    """Files that are no images by their name, counted by suffix."""


def find_images(sources: Sequence[Path]) -> Found:
    """Finds the images in `sources`, which are folders (read recursively, through symbolic links) or single files.

    Raises UserError if a source or a folder below it cannot be read, if sources overlap, if two images would have the
    same id, or if there is no image at all.
    """
    for source in sources:
        if not source.exists():
            raise UserError(f"the source {source} does not exist")
    _check_apart(sources)

    roots: dict[Path, None] = {}  # a dict for its order: a thousand single files may share one folder
    entries: list[Entry] = []
    others: Counter[str] = Counter()
    for source in sources:
        root = source.resolve() if source.is_dir() else source.parent.resolve()
        roots[root] = None
        prefix = f"{root.name}/" if len(sources) > 1 else ""
        for path in sorted(_walk(root), key=os.fsencode) if source.is_dir() else [source.name]:
            suffix = Path(path).suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                id = os.fsencode(prefix + path).decode("utf-8", "backslashreplace")
                entries.append(Entry(id, f"{root}/{path}"))
            else:
                others[suffix or "no suffix"] += 1
    if not entries:
        seen = ", ".join(f"{count} x {suffix}" for suffix, count in others.most_common(5)) or "no files"
        raise UserError(f"no images below {', '.join(map(str, sources))}, only {seen}")
    _check_unique(entries)
    return Found(list(roots), entries, others)


def _walk(root: Path) -> Iterator[str]:
    """Paths of all files below `root`, relative to it; a folder that links lead to twice is entered once."""
    entered = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        facts = Path(folder).stat()
        if (facts.st_dev, facts.st_ino) in entered:
            folders.clear()
            continue
        entered.add((facts.st_dev, facts.st_ino))
        folders.sort(key=os.fsencode)  # which of two ways to a folder comes first must not depend on the file system
        below = os.path.relpath(folder, root)
        yield from files if below == "." else (f"{below}/{file}" for file in files)


def _unreadable(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _check_apart(sources: Sequence[Path]) -> None:
    resolved: set[Path] = set()
    for source in sorted(source.resolve() for source in sources):  # a folder sorts before what it contains
        around = resolved.intersection((source, *source.parents))
        if around:
            raise UserError(f"images would count twice: the source {source} lies in the source {around.pop()}")
        resolved.add(source)


def _check_unique(entries: Sequence[Entry]) -> None:
    paths: dict[str, str] = {}
    for entry in entries:
        first = paths.setdefault(entry.id, entry.path)
        if first != entry.path:
            raise UserError(
                f"two images would have the id {entry.id}: {first} and {entry.path}; "
                "rename a source, or give the folder above both as the only source"
            )


class Facts(NamedTuple):
    """What a row of the table says of an image; None where its cell is empty."""

    label: str | None
    group: str | None
    split: str | None


class Labels(NamedTuple):
    """A table of labels, matched to images."""

    facts: dict[str, Facts]
    """By the image's id."""
    classes: list[str]
    """All labels of the table, sorted, also of rows that match no image: archives made from one table agree on them."""
    rows: int
    unmatched: list[str]
    """What to tell of each row that matches no image, or several."""


def read_labels(table: Path, found: Found, group_column: str | None = None) -> Labels:
    """Reads a CSV with the columns `image` and `label` and, if present, a group column and `split`.

    `image` is a path relative to a source or to the table's folder, or an id, or a file name with or without its
    suffix if only one image has it. `group_column` defaults to the first of `GROUP_COLUMNS` that the table has.
    Raises UserError if the table cannot be read, lacks a column, contradicts itself or matches no image.
    """
    rows = _read_rows(table, group_column)
    find = _Finder(table, found)
    matched: dict[str, _Row] = {}
    unmatched = []
    for row in rows:
        ids = find(row.image)
        if len(ids) != 1:
            unmatched.append(f"line {row.line}, {row.image!r}: {'several images have' if ids else 'no image has'} it")
            continue
        (id,) = ids
        first = matched.setdefault(id, row)
        if first.facts != row.facts:
            raise UserError(f"{table}: lines {first.line} and {row.line} say different things of {id}")
    if not matched:
        raise UserError(f"{table}: no row matches an image, e.g. {unmatched[0] if unmatched else 'it has no rows'}")
    facts = {id: row.facts for id, row in matched.items()}
    return Labels(facts, sorted({row.facts.label for row in rows} - {None}), len(rows), unmatched)


class _Row(NamedTuple):
    line: int
    image: str
    facts: Facts


def _read_rows(table: Path, group_column: str | None) -> list[_Row]:
    rows = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            group = group_column or next((name for name in GROUP_COLUMNS if name in header), None)
            for needed in ("image", "label", *filter(None, [group])):
                if needed not in header:
                    raise UserError(f"{table} has no column {needed!r}, only: {', '.join(header) or 'nothing'}")
            for values in filter(None, reader):
                if len(values) != len(header):
                    raise UserError(f"{table}, line {reader.line_num}: {len(values)} cells for {len(header)} columns")
                cells = dict(zip(header, (value.strip() or None for value in values), strict=True))
                facts = Facts(cells["label"], cells[group] if group else None, cells.get("split"))
                rows.append(_Row(reader.line_num, cells["image"] or "", facts))
    except OSError as error:
        raise UserError(f"cannot read the labels {table}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a CSV file in UTF-8: {error}") from error
    return rows


class _Finder:
    """Which images a cell of the column `image` can mean."""

    def __init__(self, table: Path, found: Found) -> None:
        self._folders = [*found.roots, table.resolve().parent]
        self._exact = {entry.path: entry.id for entry in found.entries} | {e.id: e.id for e in found.entries}
        self._by_name: dict[str, set[str]] = defaultdict(set)
        for entry in found.entries:
            name = Path(entry.path).name
            self._by_name[name].add(entry.id)
            self._by_name[Path(name).stem].add(entry.id)

    def __call__(self, cell: str) -> set[str]:
        spellings = [cell, *(os.path.normpath(folder / cell) for folder in self._folders)]
        exact = {self._exact[spelling] for spelling in spellings if spelling in self._exact}
        return exact or self._by_name.get(cell, set())
