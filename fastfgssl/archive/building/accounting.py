"""What became of every input, without a name: the archive's `accounting.arrow`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.runtime.errors import UserError, in_a_line

ACCOUNTING = "accounting.arrow"
OUTCOMES = ("written", "duplicate", "filtered", "quarantined", "skipped", "unreadable")
WRITTEN, DUPLICATE, FILTERED, QUARANTINED, SKIPPED, UNREADABLE = range(len(OUTCOMES))
FAILED = (QUARANTINED, UNREADABLE)

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),  # which frame or page; empty for the only one
        pa.field("outcome", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("reason", pa.string()),  # its kind alone: what follows may quote the file
        pa.field("sample", pa.int64()),  # the number that it is written as, or of the sample that it repeats
        pa.field("bytes", pa.int64(), nullable=False),  # of the file; -1 where its source does not tell
        pa.field("pixels", pa.binary(16)),  # hash of the decoded picture
    ]
)


def outcome_column(codes: np.ndarray) -> pa.DictionaryArray:
    """Outcomes, int8 numbers of `OUTCOMES`, as the column has them."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(OUTCOMES))


def outcome_codes(table: pa.Table) -> np.ndarray:
    """The outcomes of an accounting as numbers of `OUTCOMES`, int8 [N]."""
    return pc.index_in(table["outcome"].cast(pa.string()), pa.array(OUTCOMES)).to_numpy().astype(np.int8)


def counts(table: pa.Table) -> dict[str, int]:
    """Rows by outcome; the ones that there are."""
    found = Counter(outcome_codes(table).tolist())
    return {name: found[code] for code, name in enumerate(OUTCOMES) if found[code]}


def read_accounting(path: Path) -> pa.Table:
    """The accounting of the archive in `path`. Raises UserError if it is missing or damaged."""
    try:
        table = pa.ipc.open_file((path / ACCOUNTING).read_bytes()).read_all()
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise UserError(f"cannot read {path / ACCOUNTING}: {error.strerror}", errno=error.errno) from error
        raise UserError(f"archive {path} is damaged: {ACCOUNTING}: {in_a_line(error)}") from error
    if table.schema != SCHEMA:
        raise UserError(f"archive {path} is damaged: {ACCOUNTING} has other columns than this program writes")
    return table


def problems(table: pa.Table, inputs: dict[str, int], num_samples: int) -> list[str]:
    """What is wrong with an accounting, beside the manifest's `inputs` (rows by outcome) and number of samples."""
    found = []
    if counts(table) != inputs:
        found.append(f"{ACCOUNTING}: its outcomes are not those that the manifest counts")
    codes = outcome_codes(table)
    samples = table["sample"].fill_null(-1).to_numpy()
    if not np.array_equal(np.sort(samples[codes == WRITTEN]), np.arange(num_samples)):
        found.append(f"{ACCOUNTING}: not every sample is written by one input")
    repeats = samples[codes == DUPLICATE]
    if ((repeats < 0) | (repeats >= num_samples)).any():
        found.append(f"{ACCOUNTING}: a duplicate repeats no sample")
    return found
