"""What images show, matched to the images that were found: from the user's table, or from the folders they lie in.

`labels_presets.py` has the same for the tables of well-known challenges.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastfgssl.archive.facts import Column, EntryLabels
from fastfgssl.archive.listing import ImageFile, Listing
from fastfgssl.runtime.errors import UserError

GROUP_COLUMNS = ("group", "patient_id", "patient", "lesion_id")
SPLITS = {
    "train": ("train", "training", "fit"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""How splits may be called, in small or capital letters."""


class Facts(NamedTuple):
    """What is known of an image; None where nothing is."""

    label: str | None
    group: str | None
    split: str | None


class Labels(NamedTuple):
    """What is known of the images that were found."""

    facts: dict[str, Facts]
    """By the image's id."""
    classes: list[str]
    """All labels of the table, sorted, also of rows that match no image: archives made from one table agree on them."""
    rows: int
    unmatched: list[str]
    """What to tell of each row that matches no image, or several."""
    missing: str = ""
    """Parts of a challenge that are not there, and where to get them; empty if none."""

    def columns(self, listing: Listing) -> EntryLabels:
        """The same of each entry of the listing."""
        nothing = Facts(None, None, None)
        said: list[Facts] = [nothing] * len(listing)
        for row, entry in zip(listing.images.tolist(), listing.entries, strict=True):
            said[row] = self.facts.get(entry.name, nothing)
        return EntryLabels(*(Column.of(values) for values in zip(*said, strict=True)))


class Row(NamedTuple):
    """A row of a table of labels."""

    where: str
    """The line, for messages."""
    image: str
    """What it calls the image."""
    facts: Facts


def standard_split(name: str) -> str | None:
    """train, val or test, by whatever name (`SPLITS`); None if it is none of them."""
    return next((split for split, names in SPLITS.items() if name.strip().lower() in names), None)


def read_labels(table: Path, found: Listing, group_column: str | None = None) -> Labels:
    """Reads a CSV with the columns `image` and `label` and, if present, a group column and `split`.

    `image` is a path relative to a source or to the table's folder, or an id, or a file name with or without its
    suffix if only one image has it. `group_column` defaults to the first of `GROUP_COLUMNS` that the table has.
    Raises UserError if the table cannot be read, lacks a column, contradicts itself or matches no image.
    """
    rows = []
    for line, cells in read_table(table, ("image", "label", *filter(None, [group_column]))):
        group = group_column or next((name for name in GROUP_COLUMNS if name in cells), "")
        said = Facts(cells["label"], cells.get(group), cells.get("split"))
        rows.append(Row(f"line {line}", cells["image"] or "", said))
    facts, unmatched = match_rows(rows, _Finder(table, found), str(table))
    if not facts:
        raise UserError(f"{table}: no row matches an image, e.g. {unmatched[0] if unmatched else 'it has no rows'}")
    return Labels(facts, _classes(row.facts for row in rows), len(rows), unmatched)


def labels_of_folders(found: Listing) -> Labels:
    """Labels of a tree with a folder for each class: an image's class is the first folder below its source.

    Folders of splits (`SPLITS`) may stand above those of the classes, or be the sources themselves; an image that lies
    in one of them and in no folder of a class has no label.
    Raises UserError if an image lies in no folder, if folders of splits stand beside others, or if all images are of
    one class.
    """
    folders = {entry.name: _folders(entry, found.roots) for entry in found.entries}
    first = sorted({names[0] for names in folders.values() if names})
    splits = [name for name in first if standard_split(name)]
    loose = [entry.path for entry in found.entries if not folders[entry.name]]
    if loose:
        raise UserError(
            f"{len(loose)} of the images lie in no folder of a class ({loose[0]}, for one): with labels from folders,"
            " the first folder below a source is the class of what is in it; move them into one, or out of the source"
        )
    if splits and splits != first:
        others = [name for name in first if name not in splits]
        raise UserError(
            f"the folders {', '.join(splits)} look like splits, but stand beside {', '.join(others[:3])}: with labels"
            " from folders, folders of classes stand below those of splits, or all of them below the source"
        )
    facts = {}
    for id, names in folders.items():
        split, below = (standard_split(names[0]), names[1:]) if splits else (None, names)
        facts[id] = Facts(below[0] if below else None, None, split)
    classes = _classes(facts.values())
    if len(classes) < 2:
        what = f"all images lie in one folder, {classes[0]}," if classes else f"no folder lies in {', '.join(splits)},"
        raise UserError(
            f"{what} so there are no classes to tell apart: with labels from folders, a source is a folder that has a"
            " folder for each class"
        )
    return Labels(facts, classes, 0, [])


def _folders(entry: ImageFile, roots: Sequence[Path]) -> tuple[str, ...]:
    """Names of the folders from an image's source down to it, the source's own among them if all are splits."""
    root = next(root for root in roots if Path(entry.path).is_relative_to(root))
    below = Path(entry.path).relative_to(root).parts[:-1]
    return (root.name, *below) if len(roots) > 1 and all(standard_split(root.name) for root in roots) else below


def read_table(table: Path, needed: Collection[str]) -> list[tuple[int, dict[str, str | None]]]:
    """Rows of a CSV with a header: the number of the line, and its cells by column, None for an empty one.

    Raises UserError if the table cannot be read, or lacks a column that is `needed`.
    """
    rows = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for column in needed:
                if column not in header:
                    raise UserError(f"{table} has no column {column!r}, only: {', '.join(header) or 'nothing'}")
            for values in filter(None, reader):
                if len(values) != len(header):
                    raise UserError(f"{table}, line {reader.line_num}: {len(values)} cells for {len(header)} columns")
                cells = dict(zip(header, (value.strip() or None for value in values), strict=True))
                rows.append((reader.line_num, cells))
    except OSError as error:
        raise UserError(f"cannot read the labels {table}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a CSV file in UTF-8: {error}") from error
    return rows


def match_rows(
    rows: Iterable[Row], find: Callable[[str], Collection[str]], name: str
) -> tuple[dict[str, Facts], list[str]]:
    """What rows say of images, by their ids, and what to tell of each row that matches no image, or several.

    find: ids of the images that a row can mean; name: of the table. Raises UserError if rows contradict each other.
    """
    matched: dict[str, Row] = {}
    unmatched = []
    for row in rows:
        ids = find(row.image)
        if len(ids) != 1:
            unmatched.append(f"{row.where}, {row.image!r}: {'several images have' if ids else 'no image has'} it")
            continue
        (id,) = ids
        first = matched.setdefault(id, row)
        if first.facts != row.facts:
            raise UserError(f"{name}: {first.where} and {row.where} say different things of {id}")
    return {id: row.facts for id, row in matched.items()}, unmatched


def _classes(facts: Iterable[Facts]) -> list[str]:
    return sorted({fact.label for fact in facts if fact.label is not None})


def ids_by_name(entries: Iterable[ImageFile]) -> dict[str, set[str]]:
    """Ids of images by their file's name, with its suffix and without."""
    by_name: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        name = Path(entry.path).name
        by_name[name].add(entry.name)
        by_name[Path(name).stem].add(entry.name)
    return by_name


class _Finder:
    """Which images a cell of the column `image` can mean."""

    def __init__(self, table: Path, found: Listing) -> None:
        self._folders = [*found.roots, table.resolve().parent]
        self._exact = {entry.path: entry.name for entry in found.entries} | {e.name: e.name for e in found.entries}
        self._by_name = ids_by_name(found.entries)

    def __call__(self, cell: str) -> set[str]:
        spellings = [cell, *(os.path.normpath(folder / cell) for folder in self._folders)]
        exact = {self._exact[spelling] for spelling in spellings if spelling in self._exact}
        return exact or self._by_name.get(cell, set())
