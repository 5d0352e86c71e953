"""The user's table that says what images show, matched to the images that were found."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from fastfgssl.archive.sources import Found
from fastfgssl.runtime.errors import UserError

GROUP_COLUMNS = ("group", "patient_id", "patient", "lesion_id")


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
    return Labels(facts, sorted({row.facts.label for row in rows if row.facts.label is not None}), len(rows), unmatched)


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
