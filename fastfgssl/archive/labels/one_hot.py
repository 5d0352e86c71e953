"""Tables with a column for each class, which holds 1 for images of that class and 0 for all others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastfgssl.archive.labels.facts import NOTHING, Column
from fastfgssl.runtime.errors import UserError


def class_of_columns(table: Path, line: np.ndarray, columns: Mapping[str, Column]) -> Column:
    """The class of each row, of `columns` by class; of a row of zeros and empty cells, nothing is said.

    line: number of each row's line, int64 [N], for messages. Raises UserError for a row that says of two classes that
    the image shows them, since an image has one, and for cells that are neither 0 nor 1.
    """
    empty = [0.0]  # where code is NOTHING, the last place
    values = np.stack([np.array([*map(number, column.words), *empty])[column.code] for column in columns.values()])
    shown = values == 1
    wrong = (shown.sum(axis=0) > 1) | ~((values == 0) | shown).all(axis=0)
    if wrong.any():
        row = int(np.argmax(wrong))
        cells = ((name, column.words[column.code[row]]) for name, column in columns.items() if column.code[row] >= 0)
        said = ", ".join(f"{name}={word}" for name, word in cells)
        raise UserError(
            f"{table}, line {line[row]}: {said} is no class: where each has a column, one of them holds 1, the others 0"
        )
    return Column(list(columns), np.where(shown.any(axis=0), shown.argmax(axis=0), NOTHING).astype(np.int32))


def number(cell: str | None) -> float:
    """What a cell holds; -1 for what is no number."""
    try:
        return float(cell or "")
    except ValueError:
        return -1.0
