"""What is written is what is read, by number and by name, and damage is found and told."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfgssl.archive.building.accounting import SCHEMA, read_accounting
from fastfgssl.archive.building.shards import EXTENSIONS
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.archives import CLASSES, KEY, edit_manifest, make_samples, write

NUMBERS = ["shard", "offset", "size", "width", "height", "crc32"]


@pytest.fixture
def archive(tmp_path) -> Archive:
    return write(tmp_path / "archive", make_samples([100, 0, 512, 700, 1, 2000, 5, 511, 513, 40]), shard_bytes=1300)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=30), shard_bytes=st.integers(1, 5000))
def test_columns_agree_with_a_brute_force_read(tmp_path_factory, sizes, shard_bytes):
    samples = make_samples(sizes)
    archive = write(tmp_path_factory.mktemp("tmp") / "archive", samples, shard_bytes=shard_bytes)
    expected = []
    for shard, count in enumerate(archive.shard_sizes):
        with tarfile.open(archive.shard_path(shard)) as tar:
            members = tar.getmembers()
            assert len(members) == count >= 1
            assert sum(member.size for member in members) <= shard_bytes or count == 1
            for member in members:
                sample = samples[len(expected)]
                data = tar.extractfile(member).read()
                assert data == sample.data
                assert member.name == f"{len(expected):09d}.{EXTENSIONS[sample.format]}"
                numbers = shard, member.offset_data, len(data), sample.width, sample.height, zlib.crc32(data)
                label = -1 if sample.label is None else CLASSES.index(sample.label)
                group = -1 if sample.group is None else KEY.group(sample.group)
                expected.append((*numbers, sample.id, label, group, sample.split))
    assert archive.num_samples == len(samples) == len(expected)

    ids = np.random.default_rng(0).integers(0, len(samples), 50)
    columns = archive.columns(ids, [*NUMBERS, "id", "label", "group", "split"])
    assert list(zip(*(column.tolist() for column in columns.values()), strict=True)) == [expected[i] for i in ids]
    types = {name: column.dtype.name for name, column in columns.items()}
    assert types == {
        **dict.fromkeys(["shard", "width", "height", "crc32"], "uint32"),
        **dict.fromkeys(["offset", "size"], "uint64"),
        **dict.fromkeys(["id", "split"], "object"),
        "label": "int32",
        "group": "int64",
    }
    assert verify(archive) == []


def test_manifest(archive):
    manifest = json.loads((archive.path / "manifest.json").read_text())
    for file in (manifest["table"], manifest["accounting"], manifest["report"], *manifest["shards"]):
        data = (archive.path / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    del manifest["table"], manifest["shards"], manifest["accounting"], manifest["report"]
    made_with = manifest.pop("made_with")
    assert made_with.items() >= {"short_side": None, "encode": "keep", "depth": 8, "burned_in": "skip"}.items()
    assert manifest == {
        "format": "fastfgssl-archive",
        "near_duplicates": None,
        "version": 2,
        "samples": 10,
        "classes": ["a", "b", "c"],
        "labelled": 8,
        "groups": 4,
        "quarantined": 1,
        "bit_depth": {"8": 7, "16": 3},
        "formats": {"jpeg": 4, "png": 3, "tiff": 3},
        "short_side": None,
        "inputs": {"written": 10, "quarantined": 1},
        "key": KEY.fingerprint,
        "pixel_hash": "blake3",
    }
    assert (archive.classes, archive.labelled, archive.groups, archive.quarantined) == (("a", "b", "c"), 8, 4, 1)
    assert (archive.bit_depth, archive.formats["tiff"], archive.short_side) == ({8: 7, 16: 3}, 3, None)
    for file in ("samples.arrow", "accounting.arrow"):
        contents = (archive.path / file).read_bytes()
        assert not any(name in contents for name in (b"patient", b"bad.png", b"Jane Doe", b"003.png"))


def test_without_labels(tmp_path):
    archive = write(tmp_path / "archive", make_samples([4]), labelled=False, short_side=64)
    assert (archive.classes, archive.labelled, archive.short_side) == ((), 0, 64)
    with pytest.raises(UserError, match="has no column 'label': prepare it with --labels"):
        archive.columns(np.array([0]), ["label"])


def test_columns_of_no_and_of_impossible_samples(archive):
    nothing = archive.columns(np.array([], dtype=np.int64), ["id", "size"])
    assert [len(column) for column in nothing.values()] == [0, 0]
    for wrong in (-1, 10):
        with pytest.raises(IndexError, match=r"must lie in 0\.\.9"):
            archive.columns(np.array([0, wrong]), ["size"])


def as_version_1(archive: Archive) -> Archive:
    """The archive as the version before wrote it: without levels, facts and accounting."""
    path = archive.path / "samples.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    old = table.select([*NUMBERS, "id", "label", "group", "split"])
    with pa.ipc.new_file(str(path), old.schema) as writer:
        for batch in old.to_batches():
            writer.write_batch(batch)
    manifest = json.loads((archive.path / "manifest.json").read_text())
    for name in ("accounting", "inputs", "key"):
        del manifest[name]
    facts = {"name": "samples.arrow", "bytes": path.stat().st_size}
    facts["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (archive.path / "manifest.json").write_text(json.dumps(manifest | {"version": 1, "table": facts}))
    (archive.path / "accounting.arrow").rename(archive.path / "quarantine.csv")
    return Archive.open(archive.path)


def test_archives_of_version_1_are_read(archive):
    columns = ["id", "label", "group", "split", *NUMBERS]
    before = archive.columns(np.arange(10), columns)
    old = as_version_1(archive)
    assert verify(old) == []
    assert (old.num_samples, old.labelled, old.quarantined, old.has_column("low")) == (10, 8, 1, False)
    for name, column in old.columns(np.arange(10), columns).items():
        assert column.tolist() == before[name].tolist()


def test_levels_and_what_headers_say(archive):
    rows = archive.columns(np.arange(10), ["low", "high", "modality", "spacing_row"])
    assert rows["low"].dtype == rows["high"].dtype == np.uint16
    assert rows["high"].tolist() == [4095 if i % 4 == 1 else 255 for i in range(10)]
    assert rows["modality"].tolist() == ["MR" if i % 3 == 1 else None for i in range(10)]
    np.testing.assert_array_equal(rows["spacing_row"], [0.5 if i % 3 == 1 else np.nan for i in range(10)])
    assert not archive.has_column("manufacturer")  # of which no header said anything


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[:-1], "its outcomes are not those that the manifest counts"),
        (lambda rows: [{**rows[0], "sample": 7}, *rows[1:]], "not every sample is written by one input"),
    ],
)
def test_an_accounting_that_does_not_add_up_is_found(archive, change, problem):
    rows = change(read_accounting(archive.path).to_pylist())
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    path = archive.path / "accounting.arrow"
    with pa.ipc.new_file(str(path), SCHEMA) as writer:
        writer.write_table(table)
    stored = path.read_bytes()
    facts = {"name": "accounting.arrow", "bytes": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}
    edit_manifest(archive.path, accounting=facts)
    assert verify(Archive.open(archive.path)) == [f"accounting.arrow: {problem}"]
    path.unlink()
    assert verify(Archive.open(archive.path)) == ["accounting.arrow: No such file or directory"]
