"""Tables that users hand in: delimited text of any size, read into columns."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from fastfgssl.archive.labels.facts import NOTHING, Column
from fastfgssl.runtime.errors import UserError, file_errors

_DELIMITERS = ",;\t"
_ROWS = 1 << 16  # that are Python objects at a time


class Table(NamedTuple):
    """Some columns of a table of N rows."""

    line: np.ndarray
    """Number of the line that each row ends in, int64 [N]."""
    image: pa.ChunkedArray
    """What the rows call their images, large_string."""
    columns: dict[str, Column]
    """The other columns."""


def read_cells(table: Path, needed: Collection[str], optional: Collection[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """The number of each row's last line and its cells, stripped; the header first, blank lines left out.

    Cells are separated by commas, semicolons or tabs, as the header is. Raises UserError if the table cannot be read,
    lacks a column that is `needed`, has one twice, or a row of another length.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            header, delimiter = _header(file.readline(), (*needed, *optional))
            file.seek(0)
            for column in needed:
                if column not in header:
                    raise UserError(f"{table} has no column {column!r}, only: {', '.join(header) or 'nothing'}")
            twice = next((name for name in header if name and header.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"{table} has the column {twice!r} twice: which one counts? Rename the other")
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            next(reader, None)
            yield 1, header
            for values in filter(None, reader):
                if len(values) != len(header):
                    raise UserError(f"{table}, line {reader.line_num}: {len(values)} cells for {len(header)} columns")
                yield reader.line_num, [value.strip() for value in values]
    except OSError as error:
        raise UserError(f"cannot read the labels {table}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a CSV file in UTF-8: {error}") from error


def read_columns(table: Path, image: str, wanted: Collection[str], optional: Collection[str] = ()) -> Table:
    """Reads the column of images and others: those `wanted`, and what the table has of those `optional`.

    Raises UserError as `read_cells` does.
    """
    rows = read_cells(table, (image, *wanted), optional)
    _, header = next(rows, (0, []))
    names = [*wanted, *(name for name in optional if name in header and name not in wanted)]
    if (plain := _read_plain(table, image, header, names)) is not None:
        return plain
    places = [header.index(name) for name in names]
    image_place = header.index(image)
    lines, images, chunks = array("q"), [], []
    words: list[dict[str, int]] = [{} for _ in names]
    codes = [array("i") for _ in names]
    for line, cells in rows:
        lines.append(line)
        images.append(cells[image_place])
        if len(images) == _ROWS:
            chunks.append(pa.array(images, pa.large_string()))
            images = []
        for place, known, code in zip(places, words, codes, strict=True):
            cell = cells[place]
            code.append(NOTHING if is_empty(cell) else known.setdefault(cell, len(known)))
    chunks.append(pa.array(images, pa.large_string()))
    columns = [Column(list(known), np.array(code, np.int32)) for known, code in zip(words, codes, strict=True)]
    return Table(np.array(lines, np.int64), pa.chunked_array(chunks), dict(zip(names, columns, strict=True)))


def _read_plain(table: Path, image: str, header: list[str], names: list[str]) -> Table | None:
    """The same of a table without quotes and blank lines, ten times faster; None for any other and for a faulty one."""
    with file_errors("read the labels", table):
        text = table.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if b'"' in text or b"\n\n" in text or b"\n\r\n" in text or text.count(b"\r") != text.count(b"\r\n"):
        return None
    delimiter = _header(text.partition(b"\n")[0].decode(), (image, *names))[1]
    wanted = [str(header.index(name)) for name in (image, *names)]
    try:
        cells = pyarrow.csv.read_csv(
            pa.BufferReader(text),
            pyarrow.csv.ReadOptions(column_names=[str(place) for place in range(len(header))], skip_rows=1),
            pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=False),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.large_string()), include_columns=wanted, strings_can_be_null=False
            ),
        )
    except pa.ArrowException:  # which the way by rows tells better
        return None
    columns = {}
    for name, place in zip(names, wanted[1:], strict=True):
        trimmed = pc.utf8_trim_whitespace(cells[place])
        empty = pc.or_(pc.equal(trimmed, ""), pc.equal(pc.utf8_lower(trimmed), "nan"))
        column = pc.if_else(empty, pa.scalar(None, pa.large_string()), trimmed).combine_chunks()
        whole = (pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column).dictionary_encode()
        code = whole.indices.fill_null(NOTHING).to_numpy(zero_copy_only=False).astype(np.int32)
        columns[name] = Column(whole.dictionary.to_pylist(), code)
    return Table(np.arange(2, len(cells) + 2), pc.utf8_trim_whitespace(cells[wanted[0]]), columns)


def is_empty(cell: str) -> bool:
    """Whether a cell says nothing: tables of pandas write nan for that."""
    return not cell or cell.lower() == "nan"


def _header(line: str, needed: Collection[str]) -> tuple[list[str], str]:
    """The header's cells, and what separates them: what gives most of the needed columns, and most columns."""
    best: tuple[list[str], str] = [], ","
    rank = (-1, -1)
    for delimiter in _DELIMITERS:
        cells = [_spelled(name.strip(), needed) for name in next(csv.reader([line], delimiter=delimiter), [])]
        found = sum(name in cells for name in needed), len(cells)
        if found > rank:
            best, rank = (cells, delimiter), found
    return best


def _spelled(name: str, needed: Collection[str]) -> str:
    """A column's name as it is asked for, in whatever letters the table has it."""
    return next((wanted for wanted in needed if wanted.lower() == name.lower()), name)
