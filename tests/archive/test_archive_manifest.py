"""What is written is what is read, by number and by name, and damage is found and told."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.shards import EXTENSIONS
from fastfgssl.runtime.errors import UserError
from helpers.archives import CLASSES, KEY, make_samples, write

NUMBERS = ["shard", "offset", "size", "width", "height", "crc32"]


@pytest.fixture
def archive(tmp_path) -> Archive:
    return write(tmp_path / "archive", make_samples([100, 0, 512, 700, 1, 2000, 5, 511, 513, 40]), shard_bytes=1300)


@settings(max_examples=25, deadline=None)
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
    assert archive.verify() == []


def test_manifest(archive):
    manifest = json.loads((archive.path / "manifest.json").read_text())
    for file in (manifest["table"], manifest["accounting"], *manifest["shards"]):
        data = (archive.path / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    del manifest["table"], manifest["shards"], manifest["accounting"]
    assert manifest == {
        "format": "fastfgssl-archive",
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


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_verify_finds_any_flipped_bit(tmp_path_factory, data):
    archive = write(tmp_path_factory.mktemp("tmp") / "archive", make_samples([300, 20, 900, 0, 50]), shard_bytes=400)
    file = data.draw(st.sampled_from(["samples.arrow", "shards/shard-000000.tar", "shards/shard-000001.tar"]))
    contents = bytearray((archive.path / file).read_bytes())
    place = data.draw(st.integers(0, len(contents) - 1))
    contents[place] ^= 1 << data.draw(st.integers(0, 7))
    (archive.path / file).write_bytes(contents)
    try:
        problems = Archive.open(archive.path, check_table=False).verify()
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


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_large_table_that_was_altered_gives_no_sample_outside_its_shard(tmp_path_factory, data):
    """Larger ones are not read as a whole: what is asked for is intact, or refused in a line."""
    archive = write(tmp_path_factory.mktemp("tmp") / "archive", make_samples([300, 20, 900, 0, 50]), shard_bytes=400)
    table = archive.path / "samples.arrow"
    flip(table, data.draw(st.integers(0, table.stat().st_size - 1)), data.draw(st.integers(0, 7)))
    try:
        columns = Archive.open(archive.path, check_table=False).columns(np.arange(5), [*NUMBERS, "id", "split"])
    except UserError:
        return
    shards = np.repeat(np.arange(len(archive.shard_sizes)), archive.shard_sizes)
    lengths = [archive.shard_path(shard).stat().st_size for shard in shards]
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
    assert sorted(Archive.open(archive.path).verify()) == [
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
