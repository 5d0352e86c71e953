"""The way back from ids to names: a table beside the key, for its owner alone, and never in the archive."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastfgssl.runtime.errors import file_errors
from fastfgssl.runtime.files import write_whole

COLUMNS = ("id", "part", "path", "outcome", "reason")
_FORMULA = ("=", "+", "-", "@")


class Input(NamedTuple):
    """A row of the table."""

    id: str
    part: str
    path: str
    outcome: str
    reason: str


def visible(words: str) -> str:
    """A text in which nothing moves a cursor, turns letters round or hides: all that would is spelt out."""
    if words.isprintable():  # nearly always, and then it has none of these categories
        return words
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char
        for char in words
    )


def harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula, and no terminal for a command."""
    shown = visible(cell)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def read_inputs(path: Path) -> Iterator[list[str]]:
    """The rows of a table as they are, without its header; none if there is no table."""
    if not path.exists():
        return
    with file_errors("read", path), path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(file)
        next(rows, None)
        yield from rows


def write_inputs(path: Path, old: Iterable[list[str]], new: Iterable[Input]) -> None:
    """Writes a table as a whole, readable by its owner alone: rows of an earlier one as they are, then new ones."""

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(old)
        table.writerows(map(harmless, row) for row in new)
        text.flush()
        text.detach()  # the file is closed by who opened it

    write_private(path, write)


def write_private(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Gives `path` what `write` writes, as a whole and readable by its owner alone."""
    with file_errors("write", path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, write, mode=0o600)
