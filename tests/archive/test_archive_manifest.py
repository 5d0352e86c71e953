"""What is written is what is read, by number and by name, and damage is found and told."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from contextlib import contextmanager
from pathlib import Path

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
from helpers.archives import CLASSES, KEY, make_samples, write

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


@pytest.fixture(scope="module")
def altered(tmp_path_factory):
    """Of which a bit is wrong for the time of an example."""
    return write(tmp_path_factory.mktemp("altered") / "archive", make_samples([300, 20, 900, 0, 50]), shard_bytes=400)


@contextmanager
def flipped(file: Path, data: st.DataObject):
    """A bit of the file, anywhere."""
    place, bit = data.draw(st.integers(0, file.stat().st_size - 1)), data.draw(st.integers(0, 7))
    flip(file, place, bit)
    try:
        yield
    finally:
        flip(file, place, bit)


@settings(max_examples=30)
@given(st.data())
def test_verify_finds_any_flipped_bit(altered, data):
    file = data.draw(st.sampled_from(["samples.arrow", "shards/shard-000000.tar", "shards/shard-000001.tar"]))
    with flipped(altered.path / file, data):
        try:
            problems = verify(Archive.open(altered.path, check_table=False))
        except UserError as error:  # the table's footer: nothing can be read without it
            problems = [str(error)]
    assert problems
    assert all(file in problem for problem in problems)


def flip(file: Path, place: int, bit: int) -> None:
    contents = bytearray(file.read_bytes())
    contents[place] ^= 1 << bit
    file.write_bytes(contents)


def test_a_table_that_was_altered_is_not_opened(archive):
    flip(archive.path / "samples.arrow", archive.path.joinpath("samples.arrow").stat().st_size // 2, 3)
    with pytest.raises(UserError, match=r"is damaged: samples.arrow: its checksum differs"):
        Archive.open(archive.path)


@settings(max_examples=200)
@given(st.data())
def test_a_large_table_that_was_altered_gives_no_sample_outside_its_shard(altered, data):
    """Larger ones are not read as a whole: what is asked for is intact, or refused in a line."""
    with flipped(altered.path / "samples.arrow", data):
        try:
            columns = Archive.open(altered.path, check_table=False).columns(np.arange(5), [*NUMBERS, "id", "split"])
        except UserError:
            return
    shards = np.repeat(np.arange(len(altered.shard_sizes)), altered.shard_sizes)
    lengths = [altered.shard_path(shard).stat().st_size for shard in shards]
    assert all(columns["offset"].astype(object) + columns["size"].astype(object) <= lengths)


@pytest.mark.parametrize("number", [0, 1 << 20, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("column", ["size", "offset"])
def test_a_sample_that_lies_outside_its_shard_is_refused(archive, column, number):
    table = archive.path / "samples.arrow"
    view = archive.columns(np.array([5]), [column])[column]
    contents = table.read_bytes()
    places = [at for at in range(0, len(contents) - 8, 8) if contents[at : at + 8] == view.tobytes()]
    assert places
    for at in places:
        contents = contents[:at] + number.to_bytes(8, "little") + contents[at + 8 :]
    table.write_bytes(contents)
    opened = Archive.open(archive.path, check_table=False)
    if number == 0:  # which lies within it
        assert opened.columns(np.array([5]), [column])[column] == 0
        return
    with pytest.raises(
        UserError, match=r"is damaged: samples.arrow: it does not fit shards/shard-00000\d.tar; copy or"
    ):
        opened.columns(np.array([5]), [column])


def test_verify_names_the_damaged_sample_and_index(archive):
    (offset,) = archive.columns(np.array([3]), ["offset"])["offset"]
    (shard,) = archive.columns(np.array([3]), ["shard"])["shard"]
    with archive.shard_path(shard).open("r+b") as tar:
        tar.seek(offset + 10)
        byte = tar.read(1)[0]
        tar.seek(offset + 10)
        tar.write(bytes([byte ^ 1]))
    archive.shard_path(0).with_suffix(".idx").unlink()
    archive.shard_path(2).with_suffix(".idx").write_text("v1.2 0\n")
    assert sorted(verify(Archive.open(archive.path))) == [
        "shards/shard-000000.idx: missing, or not what the table says",
        f"shards/shard-00000{shard}.tar: its checksum differs from the manifest's",
        f"shards/shard-00000{shard}.tar: sample 3 ({KEY.id('source', b'003.png').hex()}) is damaged",
        "shards/shard-000002.idx: missing, or not what the table says",
    ]


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "manifest.json").unlink(), "is not an archive: it has no manifest.json"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda path: (path / "manifest.json").write_text("[]"), "is not an archive of ours"),
        (lambda path: edit_manifest(path, format="other"), "is not an archive of ours"),
        (lambda path: edit_manifest(path, version=3), "has archive version 3, this program reads 2: update it"),
        (lambda path: edit_manifest(path, samples=11), "manifest.json and samples.arrow disagree"),
        (lambda path: (path / "samples.arrow").unlink(), "is incomplete: samples.arrow: No such file"),
        (
            lambda path: (path / "shards/shard-000001.tar").unlink(),
            "is incomplete: shards/shard-000001.tar: No such file",
        ),
        (lambda path: (path / "shards/shard-000001.tar").write_bytes(b"x"), "shard-000001.tar has 1 bytes, not"),
        (lambda path: (path / "samples.arrow").write_bytes(b"x"), "samples.arrow has 1 bytes, not"),
        (
            lambda path: (path / "samples.arrow").write_bytes(bytes((path / "samples.arrow").stat().st_size)),
            "is damaged: samples.arrow",
        ),
    ],
)
def test_opening_what_is_no_sound_archive(archive, damage, message):
    damage(archive.path)
    with pytest.raises(UserError, match=message) as error:
        Archive.open(archive.path)
    assert "\n" not in str(error.value)


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
