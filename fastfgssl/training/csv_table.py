"""metrics.csv as it is found: rows that are whole, whatever else has got into the file."""

from __future__ import annotations

import math
from typing import Any

from fastfgssl.runtime.files import csv_cells


def read_table(text: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of a metrics.csv; without lines that were cut short, or are none of ours."""
    whole = text.rpartition("\n")[0].splitlines()
    lines = [[] if "\N{REPLACEMENT CHARACTER}" in line else csv_cells(line) for line in whole]
    columns = lines[0] if lines else []
    if "step" not in columns or len(set(columns)) < len(columns):
        return [], []
    rows = [dict(zip(columns, fields, strict=True)) for fields in lines[1:] if len(fields) == len(columns)]
    return columns, [row for row in rows if _is_number(row["step"])]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
