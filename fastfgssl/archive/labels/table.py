"""Tables that users hand in: delimited text of any size, or a sheet of a workbook, read into columns."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Collection, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from fastfgssl.archive.labels.excel import formulas_without_value, read_sheet, text_of, workbook_of
from fastfgssl.archive.labels.facts import NOTHING, Column
from fastfgssl.runtime.errors import UserError, file_errors

_DELIMITERS = ",;\t"
_OTHER_SHEETS = (".xls", ".xlsb", ".ods", ".numbers")
_MISSING = ["", "NA", "<NA>", "NULL", "null"]  # a patient NA would be one group of all who have none
_ROWS = 1 << 16  # that are Python objects at a time


class Table(NamedTuple):
    """Some columns of a table of N rows."""

    line: np.ndarray
    """Number of the line that each row ends in, int64 [N]."""
    image: pa.ChunkedArray
    """What the rows call their images, large_string."""
    columns: dict[str, Column]
    """The other columns."""


def read_cells(
    table: Path, needed: Collection[str], optional: Collection[str] = ()
) -> Generator[tuple[int, list[str]], None, None]:
    """The number of each row's last line and its cells, stripped; the header first, blank lines left out.

    Cells are separated by commas, semicolons or tabs, as the header is. Or the table is a sheet of a workbook, as
    `excel.workbook_of` tells by its name: of one, only the columns that are `needed` or `optional` have cells.
    Raises UserError if the table cannot be read, lacks a column that is `needed`, has one twice, or a row of another
    length.
    """
    if workbook_of(table) is not None:
        yield from _read_sheet_cells(table, needed, optional)
        return
    if table.suffix.lower() in _OTHER_SHEETS:
        raise UserError(f"{table}: workbooks of this kind are not read: save it as .xlsx or CSV")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            number, line = 1, file.readline()
            while line and not line.strip():
                number, line = number + 1, file.readline()
            header, delimiter = _header(line, (*needed, *optional))
            file.seek(0)
            _check_header(table, header, needed)
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            for _ in range(number):
                next(reader, None)
            yield number, header
            for values in filter(None, reader):
                if len(values) != len(header):
                    raise UserError(f"{table}, line {reader.line_num}: {len(values)} cells for {len(header)} columns")
                yield reader.line_num, [value.strip() for value in values]
    except OSError as error:
        raise UserError(f"cannot read the labels {table}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        advice = "; Excel saves such as CSV UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(f"{table} is not a CSV file in UTF-8: {error}{advice}") from error


def _check_header(table: Path, header: list[str], needed: Collection[str]) -> None:
    for column in needed:
        if column not in header:
            raise UserError(f"{table} has no column {column!r}, only: {', '.join(filter(None, header)) or 'nothing'}")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{table} has the column {twice!r} twice: which one counts? Rename the other")


def _read_sheet_cells(
    table: Path, needed: Collection[str], optional: Collection[str]
) -> Iterator[tuple[int, list[str]]]:
    wanted = (*needed, *optional)
    header: list[str] = []
    places: list[int] = []
    empty: list[tuple[int, int]] = []

    def text(cell: Any) -> str:
        try:
            return text_of(cell)
        except UserError as error:
            raise UserError(f"{table}, {error}") from None

    for number, cells in read_sheet(table):
        if not header:
            header = [_spelled(text(cell), wanted) for cell in cells]
            while header and not header[-1]:
                header.pop()
            if header:
                _check_header(table, header, needed)
                places = [place for place, name in enumerate(header) if name in wanted]
                yield number, header
            continue
        empty += [(number, place) for place in places if place >= len(cells) or cells[place].value is None]
        if all(cell.value is None for cell in cells):
            continue
        if any(cell.value is not None for cell in cells[len(header) :]):
            raise UserError(f"{table}, line {number}: {len(cells)} cells for {len(header)} columns")
        values = [""] * len(header)
        for place in places:
            values[place] = text(cells[place]) if place < len(cells) else ""
        yield number, values
    _check_header(table, header, needed)
    if empty and (where := formulas_without_value(table, empty)):
        raise UserError(
            f"{table}, {where} holds a formula whose value is not in the file: open it in Excel and save it"
        )


def read_columns(table: Path, image: str, wanted: Collection[str], optional: Collection[str] = ()) -> Table:
    """Reads the column of images and others: those `wanted`, and what the table has of those `optional`.

    Raises UserError as `read_cells` does.
    """
    rows = read_cells(table, (image, *wanted), optional)
    _, header = next(rows, (0, []))
    names = [*wanted, *(name for name in optional if name in header and name not in wanted)]
    if workbook_of(table) is None and (plain := _read_plain(table, image, header, names)) is not None:
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
    try:
        first = text.decode().partition("\n")[0]  # the whole: of columns that are not asked for nobody would know
    except UnicodeDecodeError:
        return None
    if not first.strip():
        return None
    delimiter = _header(first, (image, *names))[1]
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
        empty = pc.or_(
            pc.is_in(trimmed, pa.array(_MISSING, pa.large_string())), pc.equal(pc.utf8_lower(trimmed), "nan")
        )
        column = pc.if_else(empty, pa.scalar(None, pa.large_string()), trimmed).combine_chunks()
        whole = (pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column).dictionary_encode()
        code = whole.indices.fill_null(NOTHING).to_numpy(zero_copy_only=False).astype(np.int32)
        columns[name] = Column(whole.dictionary.to_pylist(), code)
    return Table(np.arange(2, len(cells) + 2), pc.utf8_trim_whitespace(cells[wanted[0]]), columns)


def is_empty(cell: str) -> bool:
    """Whether a cell says nothing: it is empty, or what pandas, R or a database writes for that."""
    return cell in _MISSING or cell.lower() == "nan"


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
