"""What stands beside each image in a shard, for readers that do not know our table: its class, or all that is known.

Nothing that is not in the table of samples: no name of a file or a person can come this way either.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.building.parts import FACT_TYPES
from fastfgssl.archive.building.tables import SampleLabels

LEVELS = ("bit_depth", "low", "high")


class Members:
    """The members of N new samples.

    kind: cls, the number of the class in decimal digits, and none for an image without a label, as torch's and
    webdataset's readers want it; json, an object of what is known.
    """

    def __init__(
        self,
        kind: Literal["cls", "json"],
        ids: pa.Array,
        table: pa.Table,
        labels: SampleLabels,
        classes: list[str] | None,
    ) -> None:
        self.extension: str = kind
        known = {name: table[name] for name in (*LEVELS, *FACT_TYPES)}
        self._columns = {"id": ids, **labels._asdict(), **known}
        self._numbers = pc.index_in(labels.label, pa.array(classes or [], pa.string()))

    def of(self, begin: int, end: int) -> list[bytes]:
        """Those of the samples from `begin` up to `end`, empty for none."""
        if self.extension == "cls":
            numbers = self._numbers[begin:end].to_pylist()
            return [b"" if number is None else b"%d" % number for number in numbers]
        columns = {name: _values(column[begin:end]) for name, column in self._columns.items()}
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return [_object({name: value for name, value in row.items() if value is not None}) for row in rows]


def _values(column: pa.Array | pa.ChunkedArray) -> list:
    values = column.to_pylist()
    if pa.types.is_float32(column.type):  # 0.35, not the nearest double to the nearest float
        return [None if value is None else float(str(np.float32(value))) for value in values]
    return values


def _object(known: dict[str, Any]) -> bytes:
    return json.dumps(known, separators=(",", ":")).encode()
