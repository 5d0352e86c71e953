"""Puts the records of docs/benchmarks/*.json into the tables of docs/benchmarks.md: no number is copied by hand.

python -m fastfgssl.benchmarks.page docs/benchmarks.md

A table stands between `<!-- records: PATTERN -->`, of file names beside the page, and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from fastfgssl.benchmarks import SUITES

_TABLE = re.compile(r"(<!-- records: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = ("suite", "case", "ours", "baseline", "ratio (iqr)", "limit", "of limit")


def fill(page: str, folder: Path) -> str:
    """`page` with its tables made anew from the records in `folder`. Raises ValueError for a table without records."""
    return _TABLE.sub(lambda match: f"{match[1]}{_table(folder, match[2])}{match[3]}", page)


def _table(folder: Path, pattern: str) -> str:
    files = sorted(folder.glob(pattern), key=lambda file: (SUITES.index(file.name.partition("_")[0]), file.name))
    records = [record for file in files for record in json.loads(file.read_text())]
    if not records:
        raise ValueError(f"{folder}: no records in {pattern}")
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(row, records)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def row(record: dict[str, Any]) -> tuple[str, ...]:
    """The record's cells, in the order of `COLUMNS`."""
    return (
        record["suite"],
        record["case"],
        f"{_figures(record['value'])} {record['unit']}",
        f"{record['baseline']}: {_figures(record['baseline_value'])}",
        f"{record['ratio']:.2f} ({record['spread']:.2f})",
        f"{record['limit']}: {_figures(record['limit_value'])}",
        f"{record['fraction_of_limit']:.2f}",
    )


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> None:
    page = Path(sys.argv[1])
    page.write_text(fill(page.read_text(), page.parent / "benchmarks"))


if __name__ == "__main__":
    main()
