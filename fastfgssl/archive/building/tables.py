"""The tables of an archive that is made: its samples, its accounting, its manifest."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfgssl.archive.building.accounting import ACCOUNTING, SCHEMA, WRITTEN, counts, outcome_column
from fastfgssl.archive.building.base import Base
from fastfgssl.archive.building.keys import Key
from fastfgssl.archive.building.parts import FACT_TYPES
from fastfgssl.archive.building.plan import Inputs
from fastfgssl.archive.dicom.classes import OF_CLASS
from fastfgssl.archive.manifest import TABLE
from fastfgssl.archive.manifest_file import FORMAT, MANIFEST, VERSION

COLUMNS = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("shard", pa.uint32(), nullable=False),
    pa.field("offset", pa.uint64(), nullable=False),
    pa.field("size", pa.uint64(), nullable=False),
    pa.field("width", pa.uint32(), nullable=False),
    pa.field("height", pa.uint32(), nullable=False),
    pa.field("crc32", pa.uint32(), nullable=False),
    pa.field("bit_depth", pa.uint8(), nullable=False),
    pa.field("low", pa.uint16(), nullable=False),  # the levels that are black and white
    pa.field("high", pa.uint16(), nullable=False),
]
_OF_PARTS = ("size", "width", "height", "crc32", "bit_depth", "low", "high")
FACT_COLUMNS = [pa.field(name, type) for name, type in FACT_TYPES.items()]
GROUP = pa.field("group", pa.int64())
SPLIT = pa.field("split", pa.string())
LABEL_COLUMNS = [pa.field("label", pa.int32()), GROUP, SPLIT]


class SampleLabels(NamedTuple):
    """What is known of samples: columns of N."""

    label: pa.Array
    """Class by its name, string; null for none."""
    group: pa.Array
    """int64; null for none."""
    split: pa.Array

    @classmethod
    def none(cls, number: int) -> SampleLabels:
        """Of samples of which nothing is said."""
        return cls(*(pa.nulls(number, type) for type in (pa.string(), pa.int64(), pa.string())))

    def with_patients(self, patients: pa.Array, key: Key) -> SampleLabels:
        """With a group for each patient where no other is said; patients: what stands for them, null for none.

        It is the first that is said of an image of the patient, or else one of its own.
        """
        words = pc.dictionary_encode(patients)
        groups = [key.group(f"patient {word}") for word in words.dictionary.to_pylist()]
        both = np.flatnonzero(pc.and_(words.is_valid(), self.group.is_valid()))[::-1]
        known, said = (column.take(pa.array(both)).to_pylist() for column in (words.indices, self.group))
        for word, group in zip(known, said, strict=True):
            groups[word] = group
        return self._replace(group=pc.coalesce(self.group, pa.array(groups, pa.int64()).take(words.indices)))

    def joined(self, pairs: Sequence[tuple[int, int]], ids: pa.Array, key: Key, base: Base) -> tuple[SampleLabels, int]:
        """With one group for samples that are paired, and for all that share a group with one of them.

        pairs: numbers of samples, negative for those of `base`, from its last, which keep their groups, and get one if
        they had none. ids: of the others, which name groups of samples that had none. Of the groups that become one,
        that of the first sample stays. Those that `base` has are not joined with each other: returns also how many
        pairs would have it so.
        """
        groups = self.group.to_pylist()
        of_base: dict[int, int] = {}
        had_none: dict[int, int] = {}
        for sample in sorted({sample for pair in pairs for sample in pair}):
            if sample < 0:
                id, group = base.id_and_group(number := base.num_samples + sample)
                if group is None:
                    group = had_none[number] = key.group(f"near-duplicates {id}")
                of_base[sample] = group
            elif groups[sample] is None:
                groups[sample] = key.group(f"near-duplicates {ids[sample]}")
        first: dict[int, int] = {}
        for sample, group in enumerate(groups):
            first.setdefault(group, sample)
        first |= dict.fromkeys((*of_base.values(), *base.groups()), -1)
        leader: dict[int, int] = {}

        def lead(group: int) -> int:
            while (above := leader.get(group, group)) != group:
                group = above
            return group

        apart = 0
        for pair in pairs:
            both = {lead(of_base[sample] if sample < 0 else groups[sample]) for sample in pair}
            one, *other = sorted(both, key=lambda group: first[group])
            if other and first[other[0]] == -1:
                apart += 1
            elif other:
                leader[other[0]] = one
        found = [group if group is None else lead(group) for group in groups]
        shared = set(found)
        base.name_groups({number: group for number, group in had_none.items() if group in shared})
        return self._replace(group=pa.array(found, pa.int64())), apart


def sample_columns(inputs: Inputs, ids: pa.Array, bounds: np.ndarray, offsets: np.ndarray, first_shard: int) -> dict:
    """Columns of the samples among `inputs`, which begin shards at `bounds` and lie at `offsets` in them."""
    written = pa.array(inputs.outcome == WRITTEN)
    table = inputs.table.filter(written)
    shard = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)) + first_shard
    return {
        "id": ids.filter(written),
        "shard": pa.array(shard, pa.uint32()),
        "offset": pa.array(offsets, pa.uint64()),
        **{name: table[name].combine_chunks() for name in (*_OF_PARTS, *FACT_TYPES)},
    }


def write_samples(
    archive: Path, base: Base, columns: dict, labels: SampleLabels, bounds: np.ndarray, classes: list[str] | None
) -> tuple[dict, pa.Table]:
    """Writes the table, a record batch a shard; returns its entry in the manifest, and the table.

    classes: of all samples, whose numbers are the labels; None for an archive without labels.
    """
    new = {
        name: column for name, column in columns.items() if name not in FACT_TYPES or column.null_count < len(column)
    }
    old = set() if base.table is None else set(base.table.schema.names)
    fields = COLUMNS + [item for item in FACT_COLUMNS if item.name in old or item.name in new]
    if classes is not None:
        fields += LABEL_COLUMNS
    else:
        said = {GROUP.name: labels.group, SPLIT.name: labels.split}
        fields += [
            item for item in (GROUP, SPLIT) if item.name in old or said[item.name].null_count < len(columns["id"])
        ]
    schema = pa.schema(fields)
    code = pc.index_in(labels.label, pa.array(classes or [], pa.string()))
    new |= {"label": code, "group": labels.group, "split": labels.split}
    table = _with_schema(pa.table(new), schema)
    batches = []
    if base.table is not None:
        known = base.table
        if base.classes is not None and classes is not None:
            renumbered = pa.array(base.classes, pa.string()).take(known["label"].combine_chunks())
            at = known.schema.get_field_index("label")
            known = known.set_column(at, LABEL_COLUMNS[0], pc.index_in(renumbered, pa.array(classes, pa.string())))
        batches += _with_schema(known, schema).to_batches()
    whole = table.combine_chunks()
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        batches.append(whole.slice(begin, end - begin).to_batches()[0])
    return _write(archive, TABLE, batches, schema), pa.Table.from_batches(batches, schema)


def new_accounting(inputs: Inputs, ids: pa.Array, sizes: np.ndarray) -> pa.Table:
    """The accounting of `inputs`; sizes: bytes of the file of each."""
    reasons = inputs.table["reason"].combine_chunks()
    columns = [
        ids,
        pc.fill_null(inputs.table["part"], "").combine_chunks(),
        outcome_column(inputs.outcome),
        kind_of_reason(reasons),
        pa.array(inputs.sample, pa.int64(), mask=inputs.sample < 0),
        pa.array(sizes, pa.int64()),
        inputs.table["pixels"].combine_chunks(),
    ]
    return pa.table([_whole(column) for column in columns], schema=SCHEMA)


def kind_of_reason(reasons: pa.Array) -> pa.Array:
    """What stands before the first colon; all of it for a class of DICOM objects, whose names are the standard's."""
    whole = _whole(reasons)
    kinds = pc.list_element(pc.split_pattern(whole, ":", max_splits=1), 0)
    return pc.if_else(pc.starts_with(whole, f"{OF_CLASS}: "), whole, kinds)


def write_accounting(archive: Path, table: pa.Table) -> dict:
    """Writes the accounting and returns its entry in the manifest."""
    return _write(archive, ACCOUNTING, table.combine_chunks().to_batches(), SCHEMA)


def manifest_of(
    base: Base,
    inputs: Inputs,
    *,
    shards: list[dict],
    table: tuple[dict, pa.Table],
    accounting: tuple[dict, pa.Table],
    classes: list[str] | None,
    made_with: dict[str, str | int | float | None],
    key: Key,
    near_duplicates: int | None,
) -> dict:
    """The manifest of an archive, but for its report."""
    entry, samples = table
    written = inputs.table.filter(pa.array(inputs.outcome == WRITTEN))
    depth = {"8": 0, "16": 0} | _counted(written["bit_depth"])
    known = classes is not None
    outcomes = counts(accounting[1])
    assert sum(outcomes.values()) == len(accounting[1])
    pairs = [pairs for pairs in (base.manifest.get("near_duplicates"), near_duplicates) if pairs is not None]
    return {
        "format": FORMAT,
        "version": VERSION,
        "samples": len(samples),
        "shards": shards,
        "table": entry,
        "accounting": accounting[0],
        "inputs": outcomes,
        "classes": classes,
        "labelled": len(samples) - samples["label"].null_count if known else 0,
        "groups": len(pc.unique(samples["group"].drop_null())) if "group" in samples.schema.names else 0,
        "quarantined": outcomes.get("quarantined", 0) + outcomes.get("unreadable", 0),
        "bit_depth": {bits: depth[bits] + base.manifest.get("bit_depth", {}).get(bits, 0) for bits in ("8", "16")},
        "formats": Counter(base.manifest.get("formats", {})) + Counter(_counted(written["format"])),
        "near_duplicates": sum(pairs) if pairs else None,
        "short_side": made_with["short_side"],
        "made_with": made_with,
        "pixel_hash": base.pixel_hash,
        "key": key.fingerprint,
    }


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    """How often there is what."""
    return {str(found["values"]): found["counts"] for found in pc.value_counts(column).to_pylist()}


def write_manifest(archive: Path, manifest: dict) -> None:
    """Writes the manifest, which makes a folder an archive."""
    (archive / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[item.name].cast(item.type) if item.name in table.schema.names else pa.nulls(len(table), item.type)
        for item in schema
    ]
    return pa.table(columns, schema=schema)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _write(archive: Path, name: str, batches: list[pa.RecordBatch], schema: pa.Schema) -> dict:
    with (archive / name).open("xb") as file:
        sink = _Hashed(file)
        with pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    return {"name": name, "bytes": sink.size, "sha256": sink.digest.hexdigest()}


class _Hashed:
    """A file that counts and hashes what is written to it. `flush` and `closed` are what pyarrow asks of a file."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
