"""What gives far more bytes than it has is stopped, counted, and costs nobody else anything."""

from __future__ import annotations

import gzip
import resource
import struct
import zipfile
from pathlib import Path

import pytest

from fastfgssl.archive.sources import containers
from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.containers import WithContainers
from fastfgssl.archive.sources.folder import FolderSource
from helpers.containers import contents_of, tar_of, write, zip_of

MIB = 1 << 20


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    monkeypatch.setattr(containers, "_FREE", MIB)


def contents(path: Path, **options: object) -> dict[str, bytes | str]:
    options = SourceOptions(**{"depth": 9} | options)
    return contents_of(WithContainers(FolderSource(path, options), options))


BOMB = "quarantined: damaged container: it gives more than --max-ratio 200 times its size: is it a bomb?"


def test_a_zip_of_zips_of_zips(tmp_path):
    """As 42.zip: each of a few in each of a few, and in the last a file of zeros."""
    data = zip_of({"0.png": bytes(8 * MIB)})
    for _ in range(5):
        data = zip_of({f"{i}.zip": data for i in range(16)})
    assert len(data) < 40_000  # of 8 TiB
    files = write(tmp_path / "data" / "42.zip", data).parent
    write(files / "good.png", b"good")
    found = contents(files)
    assert found["good.png"] == b"good"
    assert found["42.zip"] == BOMB
    assert len(found) < 100
    assert not any(isinstance(data, bytes) and len(data) > MIB for data in found.values())


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_a_tar_of_zeros_and_a_tar_of_nothing(tmp_path, name):
    first = {"1.png": b"one"}
    files = first | {"2.png": bytes(30 * MIB), "3.png": b"three"}
    found = contents(write(tmp_path / name, gzip.compress(tar_of(files))))
    assert found == {f"{name}!/1.png": b"one", name: BOMB}
    empty = gzip.compress(tar_of({f"{i}.txt": b"" for i in range(1 << 15)} | first))
    assert contents(write(tmp_path / name, empty), max_ratio=9)[name] == BOMB.replace("200", "9")


def test_members_that_share_their_bytes(tmp_path):
    """As zbsm.zip: a directory in which many members lead to one."""
    data = zip_of({"00.png": b"x" * 600_000})
    directory, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    many = b"".join(data[directory:end].replace(b"00.png", b"%02d.png" % i) for i in range(99))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 99, 99, len(many), directory, 0)
    found = contents(write(tmp_path / "a.zip", data[:directory] + many + tail))
    assert found["a.zip"] == BOMB
    assert len(found) == 1 + max(MIB, 200 * (len(data[:directory] + many + tail))) // 600_000


def test_the_limits_are_options(tmp_path):
    path = write(tmp_path / "a.zip", zip_of({"1.png": bytes(9 * MIB), "2.png": bytes(9 * MIB)}))
    assert contents(path)["a.zip"] == BOMB
    assert contents(path, max_ratio=2000).keys() == {"a.zip!/1.png", "a.zip!/2.png"}
    said = contents(path, max_ratio=2000, max_expanded=10 * MIB)["a.zip"]
    assert said == f"quarantined: damaged container: it gives more than --max-expanded {10 * MIB} bytes: is it a bomb?"


def test_a_member_that_is_larger_than_it_says_is_not_read_to_its_end(tmp_path):
    data = bytearray(zip_of({"1.png": bytes(900 * MIB // 3)}))
    data[data.index(b"PK\1\2") + 24 :][:4] = b""
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = struct.pack("<L", 1000)
    path = write(tmp_path / "a.zip", bytes(data))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert contents(path) == {"a.zip!/1.png": "Unusable: damaged container: 1001 bytes where its header says 1000"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_zip_in_a_compressed_container_is_held_in_memory_up_to_a_limit(tmp_path):
    inner = zip_of({"1.png": bytes(range(256)) * 4000}, zipfile.ZIP_STORED)
    path = write(tmp_path / "a.zip", zip_of({"in.zip": inner, "2.png": b"two"}))
    assert contents(path, max_bytes=MIB // 2) == {
        "a.zip!/2.png": b"two",
        "a.zip!/in.zip": f"quarantined: damaged container: {len(inner)} bytes in another that is compressed,"
        f" --max-bytes is {MIB // 2}",
    }
    path = write(tmp_path / "a.zip", zip_of({"in.zip": inner}, zipfile.ZIP_STORED))
    assert contents(path, max_bytes=MIB // 2).keys() == {"a.zip!/in.zip!/1.png"}  # whose directory can be sought
