"""Archives that were damaged or altered: it is found when they are opened, read or verified, and told in a line."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.archives import KEY, edit_manifest, make_samples, write

NUMBERS = ["shard", "offset", "size", "width", "height", "crc32"]


@pytest.fixture
def archive(tmp_path) -> Archive:
    return write(tmp_path / "archive", make_samples([100, 0, 512, 700, 1, 2000, 5, 511, 513, 40]), shard_bytes=1300)


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


@pytest.mark.parametrize(
    ("column", "type", "nullable"),
    [
        ("offset", pa.timestamp("us"), False),
        ("size", pa.float64(), False),
        ("size", pa.uint64(), True),
        ("crc32", pa.uint32(), True),
        ("width", pa.list_(pa.uint32()), False),
        ("id", pa.binary(), False),
    ],
)
def test_columns_of_other_types_are_refused(archive, column, type, nullable):
    path = archive.path / "samples.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    fields = [pa.field(column, type, nullable) if field.name == column else field for field in table.schema]
    rows = table.to_pylist()
    other = {"timestamp[us]": 0, "double": 1.5, "list<item: uint32>": [1], "binary": b"x"}.get(str(type), 1)
    with pa.ipc.new_file(str(path), pa.schema(fields)) as writer:
        begin = 0
        for batch in table.to_batches():
            of_shard = [row | {column: other} for row in rows[begin : begin + len(batch)]]
            writer.write_batch(pa.RecordBatch.from_pylist(of_shard, schema=pa.schema(fields)))
            begin += len(batch)
    stored = json.loads((archive.path / "manifest.json").read_text())["table"]
    edit_manifest(archive.path, table=stored | {"bytes": path.stat().st_size})
    with pytest.raises(
        UserError, match=rf"is damaged: samples.arrow: column {column} is of .*; copy or prepare it again"
    ):
        Archive.open(archive.path, check_table=False).columns(np.arange(3), [column])


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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "manifest.json").unlink(), "is not an archive: it has no manifest.json"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda path: (path / "manifest.json").write_text("[]"), "is not an archive of ours"),
        (lambda path: edit_manifest(path, format="other"), "is not an archive of ours"),
        (lambda path: edit_manifest(path, version=3), "has archive version 3, this program reads 2: update it"),
        (
            lambda path: edit_manifest(path, samples=11),
            "manifest.json is damaged: its shards hold another number of samples",
        ),
        (lambda path: edit_manifest(path, samples=0), "its shards hold another number of samples"),
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
