"""Tables of labels that are sheets of an Excel workbook, as the rows that their export as CSV would have."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, NamedTuple

from fastfgssl.runtime.errors import UserError, file_errors, in_a_line, nearest

_NAMED = re.compile(r"(.+\.xls[xm])(?::(.*))?", re.IGNORECASE | re.DOTALL)
_EXACT = 10**15  # Excel keeps 15 digits of a number: of longer ones the end is lost
_SAYS_NOTHING = "#N/A"


class SheetRow(NamedTuple):
    """A row of a sheet."""

    number: int
    """As Excel shows it."""
    cells: list[Any]
    """Of openpyxl, as far as the row goes."""


def workbook_of(table: Path) -> tuple[Path, str] | None:
    """The workbook that `table` names and its sheet, empty for the first; None if it names no workbook.

    A sheet stands behind a colon, which no sheet has in its name: labels.xlsx:Sheet 2.
    """
    named = _NAMED.fullmatch(str(table))
    return (Path(named[1]), named[2] or "") if named else None


def read_sheet(table: Path) -> Iterator[SheetRow]:
    """The rows of the sheet that `table` names, in order, without those of which nothing was ever written.

    Raises UserError if there is no such file or sheet, if it is no workbook, or without the extra that reads them.
    """
    found = workbook_of(table)
    assert found is not None
    file, sheet = found
    with _opened(file) as workbook:
        page = _sheet(file, workbook, sheet)
        page.reset_dimensions()  # what some programs write there is not so
        for number, cells in enumerate(page.iter_rows(), start=1):
            if cells:
                yield SheetRow(number, list(cells))


def text_of(cell: Any) -> str:
    """What a cell shows: whole numbers without a point and with the zeros that its format puts before them.

    Dates are written as 2026-11-27, with the time if they have one; truth as TRUE and FALSE. What says nothing, and
    #N/A, is empty. Raises UserError for a number of which Excel has lost the last digits, and for an error.
    """
    value = cell.value
    if value is None or value == _SAYS_NOTHING:
        return ""
    if cell.data_type == "e":
        raise UserError(f"{cell.coordinate} holds an error, {value}")
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        if abs(value) >= _EXACT:
            raise UserError(
                f"{cell.coordinate} holds the number {value}, of which Excel keeps only 15 digits: write it as text"
            )
        zeros = re.fullmatch("0+", str(cell.number_format))
        return str(value).zfill(len(zeros[0])) if zeros else str(value)
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ")
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value).strip()


def formulas_without_value(table: Path, cells: Sequence[tuple[int, int]]) -> str:
    """The first of `cells`, empty ones by row and place, that has a formula nobody has computed; empty for none."""
    found = workbook_of(table)
    assert found is not None
    file, sheet = found
    empty = set(cells)
    with _opened(file, formulas=True) as workbook:
        page = _sheet(file, workbook, sheet)
        page.reset_dimensions()
        for number, row in enumerate(page.iter_rows(), start=1):
            for place, cell in enumerate(row):
                if cell.data_type == "f" and (number, place) in empty:
                    return str(cell.coordinate)
    return ""


@contextmanager
def _opened(file: Path, *, formulas: bool = False) -> Iterator[Any]:
    try:
        import openpyxl
    except ImportError:
        raise UserError(f"{file} is an Excel workbook: pip install 'fastfgssl[excel]' to read it") from None
    with file_errors("read the labels", file), file.open("rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles and rules that are not read
        try:
            workbook = openpyxl.load_workbook(stream, read_only=True, data_only=not formulas)
        except OSError:
            raise
        except Exception as error:  # whatever a broken file leads it to
            why = "no zip: perhaps it has a password" if isinstance(error, zipfile.BadZipFile) else in_a_line(error)
            raise UserError(f"{file} is no Excel workbook that can be read ({why}): save it as .xlsx or CSV") from None
        try:
            yield workbook
        except (UserError, OSError):
            raise
        except Exception as error:
            raise UserError(f"{file} is damaged ({in_a_line(error)}): save it again, or as CSV") from None
        finally:
            workbook.close()


def _sheet(file: Path, workbook: Any, name: str) -> Any:
    sheets = {page.title: page for page in workbook.worksheets}
    if not name:
        shown = [page for page in workbook.worksheets if page.sheet_state == "visible"]
        if not shown:
            raise UserError(f"{file} has no sheet with cells")
        return shown[0]
    if name not in sheets:
        raise UserError(f"{file} has no sheet {name!r}, only: {', '.join(sheets)}{nearest(name, list(sheets))}")
    return sheets[name]
