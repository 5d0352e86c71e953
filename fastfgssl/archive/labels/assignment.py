"""What images show, matched to the images that were found: from the user's table, or from the folders they lie in.

`labels_presets.py` has the same for the tables of well-known challenges.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastfgssl.archive.labels.facts import NOTHING, Column, EntryLabels
from fastfgssl.archive.labels.matching import SEVERAL, Finder
from fastfgssl.archive.labels.one_hot import class_of_columns
from fastfgssl.archive.labels.splits import standard_split
from fastfgssl.archive.labels.table import is_empty, read_cells, read_columns
from fastfgssl.archive.listing import ImageFile, Listing
from fastfgssl.archive.sources.base import container_suffix
from fastfgssl.runtime.errors import UserError

GROUP_COLUMNS = ("group", "patient_id", "patient", "lesion_id")


class Facts(NamedTuple):
    """What is known of an image; None where nothing is."""

    label: str | None
    group: str | None
    split: str | None


class Labels(NamedTuple):
    """What is known of the images that were found."""

    said: EntryLabels
    """Of each entry of the listing."""
    classes: list[str]
    """All labels of the table, sorted, also of rows that match no image: archives made from one table agree on them."""
    rows: int
    unmatched: list[str]
    """What to tell of each row that matches no image, or several."""
    missing: str = ""
    """Parts of a challenge that are not there, and where to get them; empty if none."""


def by_entry(facts: Mapping[str, Facts], listing: Listing) -> EntryLabels:
    """What is known of images by their names, as columns of the listing."""
    nothing = Facts(None, None, None)
    said: list[Facts] = [nothing] * len(listing)
    for row, entry in zip(listing.images.tolist(), listing.entries, strict=True):
        said[row] = facts.get(entry.name, nothing)
    return EntryLabels(*(Column.of(values) for values in zip(*said, strict=True)))


class Row(NamedTuple):
    """A row of a table of labels."""

    where: str
    """The line, for messages."""
    image: str
    """What it calls the image."""
    facts: Facts


def read_labels(
    table: Path,
    found: Listing,
    group_column: str | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
) -> Labels:
    """Reads a table with the columns `image` and `label` and, if present, a group column and `split`.

    `image` is a path relative to a source or to the table's folder, or an image's name, or a file name with or without
    its suffix, or with another, if only one image has it. `group_column` defaults to the first of `GROUP_COLUMNS` that
    the table has; capital letters do not matter. `label_column` may be names of several columns, separated by commas:
    each is a class then, and holds 1 or 0.
    Raises UserError if the table cannot be read, lacks a column, contradicts itself or matches no image.
    """
    optional = ("split",) if group_column else ("split", *GROUP_COLUMNS)
    one_hot = "," in label_column and not _has_column(table, image_column, label_column)
    names = list(filter(None, map(str.strip, label_column.split(",")))) if one_hot else [label_column]
    if not names:
        raise UserError(f"label-column = {label_column!r}: must be a column of {table}, or one for each class: A,B")
    read = read_columns(table, image_column, (*names, *filter(None, [group_column])), optional)
    told = {name: read.columns[name] for name in names}
    label = class_of_columns(table, read.line, told) if one_hot else told[label_column]
    group = group_column or next((name for name in GROUP_COLUMNS if name in read.columns), "")
    nothing = Column([], np.full(len(read.line), NOTHING, np.int32))
    columns = [label, *(read.columns.get(name, nothing) for name in (group, "split"))]
    images = Finder(found, table.parent)(read.image)

    rows = np.flatnonzero(images >= 0)
    matched, first = np.unique(images[rows], return_index=True)
    first = rows[first]
    earlier = first[np.searchsorted(matched, images[rows])]
    differ = np.logical_or.reduce([column.code[rows] != column.code[earlier] for column in columns])
    if differ.any():
        at = int(np.argmax(differ))
        lines, name = read.line[[earlier[at], rows[at]]].tolist(), found.entries[int(images[rows[at]])].name
        raise UserError(f"{table}: line {lines[0]} and line {lines[1]} say different things of {name}")
    unmatched = [
        f"line {read.line[row]}, {read.image[row].as_py()!r}:"
        f" {'several images have' if images[row] == SEVERAL else 'no image has'} it"
        for row in np.flatnonzero(images < 0).tolist()
    ]
    if not len(rows):
        raise UserError(f"{table}: no row matches an image, e.g. {unmatched[0] if unmatched else 'it has no rows'}")
    said = []
    for column in columns:
        code = np.full(len(found), NOTHING, np.int32)
        code[found.images[matched]] = column.code[first]
        said.append(Column(column.words, code))
    return Labels(EntryLabels(*said), sorted(label.words), len(read.line), unmatched)


def _has_column(table: Path, image_column: str, name: str) -> bool:
    """Whether a table has a column of this very name, with commas in it."""
    with closing(read_cells(table, (image_column,), (name,))) as rows:
        return name in next(rows, (0, []))[1]


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
    return Labels(by_entry(facts, found), classes, 0, [])


def _folders(entry: ImageFile, roots: Sequence[Path]) -> tuple[str, ...]:
    """Names of the folders from an image's source down to it, the source's own among them if all are splits."""
    root = next(root for root in roots if Path(entry.path).is_relative_to(root))
    below = tuple(
        name
        for name in Path(entry.path).relative_to(root).parts[:-1]
        if not (name.endswith("!") and container_suffix(name[:-1]))  # whose own folders are what counts
    )
    return (root.name, *below) if len(roots) > 1 and all(standard_split(root.name) for root in roots) else below


def read_table(table: Path, needed: Collection[str]) -> list[tuple[int, dict[str, str | None]]]:
    """Rows of a small table: the number of the line, and its cells by column, None for an empty one.

    Raises UserError as `read_cells` does.
    """
    rows = read_cells(table, needed)
    _, header = next(rows, (0, []))
    return [
        (line, {name: None if is_empty(cell) else cell for name, cell in zip(header, cells, strict=True)})
        for line, cells in rows
    ]


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
