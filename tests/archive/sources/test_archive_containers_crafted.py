"""A container that somebody has made to do harm costs itself alone: no crash, no memory, no other's name."""

from __future__ import annotations

import gzip
import resource
import struct
import tarfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.archive.sources import containers
from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.containers import WithContainers
from fastfgssl.archive.sources.folder import FolderSource
from fastfgssl.archive.verification import verify
from helpers.containers import contents_of, tar_of, write, zip_of
from helpers.images import encode, fixed_key, gradient, inputs_of, write_files

MIB = 1 << 20
LEADS_OUT = "damaged container: its directory leads out of it"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(containers, "PAUSES", ())


def source(path: Path, **options: object) -> WithContainers:
    options = SourceOptions(**{"depth": 3} | options)
    return WithContainers(FolderSource(path, options), options)


def contents(path: Path, **options: object) -> dict[str, bytes | str]:
    return contents_of(source(path, **options))


def tar_of_names(names: Iterable[str]) -> bytes:
    return tar_of({}, tarfile.GNU_FORMAT, others=map(tarfile.TarInfo, names))


def member(name: str, data: bytes) -> bytes:
    """Of a tar, so that one of them may have a name twice."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf() + data + bytes(-len(data) % 512)


def tar_with_pax_size(size: str) -> bytes:
    info = tarfile.TarInfo("1.png")
    info.pax_headers = {"size": size}
    return tar_of({}, others=[info])


def zip_with_far_directory() -> bytes:
    """One whose end says that its members are 2 GiB further on, so that they are before its start."""
    data = bytearray(zip_of({"1.png": b"one"}))
    struct.pack_into("<L", data, data.rindex(b"PK\5\6") + 16, 1 << 31)
    return bytes(data)


def zip_with_far_member() -> bytes:
    data = zip_of({"1.png": b"one"})
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    record, extra = bytearray(data[start:end]), struct.pack("<2HQ", 1, 8, (1 << 64) - 9)
    record[42:46], record[30:32] = b"\xff" * 4, struct.pack("<H", len(extra))
    directory = bytes(record) + extra
    return data[:start] + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), start, 0)


def zip_with_far_locator() -> bytes:
    data = zip_of({"1.png": b"one"})
    end = data.rindex(b"PK\5\6")
    return data[:end] + struct.pack("<4sLQL", b"PK\6\7", 0, (1 << 64) - 1, 1) + data[end:]


def zip_with_damaged_bzip2() -> bytes:
    data = bytearray(zip_of({"1.png": b"0123456789" * 99, "2.png": b"two"}, zipfile.ZIP_BZIP2))
    data[60] ^= 255
    return bytes(data)


@pytest.mark.parametrize("nested", [False, True])
def test_places_that_are_in_no_file(tmp_path, nested):
    made = {
        "far.zip": zip_with_far_directory(),
        "member.zip": zip_with_far_member(),
        "place.zip": zip_with_far_locator(),
    }
    if nested:
        write(tmp_path / "all.zip", zip_of(made))
    else:
        write_files(tmp_path, made)
    top = "all.zip!/" if nested else ""
    assert contents(tmp_path) == {
        f"{top}far.zip!/1.png": f"Unusable: {LEADS_OUT}",
        f"{top}member.zip!/1.png": f"Unusable: {LEADS_OUT}",
        f"{top}place.zip!/1.png": b"one",
        f"{top}place.zip": f"quarantined: {LEADS_OUT}",
    }


def test_a_damaged_record_of_a_directory_loses_no_member(tmp_path):
    data = bytearray(zip_of({f"{i}.png": b"%d" % i for i in range(6)}))
    data[data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)] ^= 1
    found = contents(write(tmp_path / "a.zip", bytes(data)))
    assert found.pop("a.zip") == "quarantined: damaged container: its directory is damaged"
    assert found == {f"a.zip!/{i}.png": b"%d" % i for i in range(6)}


def test_damaged_bzip2_is_no_failing_disk(tmp_path):
    found = contents(write(tmp_path / "a.zip", zip_with_damaged_bzip2()))
    assert found["a.zip!/1.png"].startswith("Unusable: damaged container: bzip2: ")
    assert found["a.zip!/2.png"] == b"two"
    inner = tar_of({f"{i}.png": bytes(range(256)) * 400 for i in range(20)})
    data = bytearray(zip_of({"in.tar": inner, "z.png": b"z"}, zipfile.ZIP_BZIP2))
    data[data.index(b"z.png") // 2] ^= 255
    found = contents(write(tmp_path / "b.zip", bytes(data)))
    assert found["b.zip!/in.tar"].startswith("quarantined: damaged container: bzip2: ")
    assert found["b.zip!/z.png"] == b"z"


def test_a_size_of_very_many_digits(tmp_path):
    said = contents(write(tmp_path / "a.tar", tar_with_pax_size("9" * 5000)))["a.tar"]
    assert said == "quarantined: damaged container: a header says a size of 5000 digits"
    assert "cut off" in contents(write(tmp_path / "a.tar", tar_with_pax_size("9" * 19)))["a.tar"]


def test_names_that_numbers_were_put_to_beforehand(tmp_path):
    names = ["a" + "!2" * number for number in reversed(range(1500))]
    entries = list(source(write(tmp_path / "a.tar", tar_of_names([*names, "a"]))).entries())
    assert len({entry.name for entry in entries}) == len(names) + 1


def test_names_of_a_mebibyte_are_not_kept(tmp_path):
    names = [f"{'b' * MIB}{number}.png"[16:] for number in range(20)]
    found = contents(write(tmp_path / "a.tar", member("good.png", b"good") + tar_of_names(names)))
    assert found.pop("a.tar!/good.png") == b"good"
    assert len(found) == 20
    assert set(found.values()) <= {f"quarantined: name too long: {len(name)} bytes" for name in names}
    assert sum(map(len, found)) < 20 * 5000
    inner = zip_of({f"{number}.png": b"" for number in range(99)})
    assert len(contents(write(tmp_path / "a.tar", tar_of({f"{'n' * 60000}.zip": inner})))) == 1


def test_headers_count_as_bytes_that_a_container_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_FREE", MIB)
    tar = gzip.compress(tar_of_names(f"{'a' * 900_000}{number}.png" for number in range(30)))
    found = contents(write(tmp_path / "a.tar.gz", tar), max_ratio=9)
    assert "--max-ratio" in found["a.tar.gz"]
    assert len(found) < 4


def test_a_name_that_begins_with_very_many_dots_is_cut_in_no_time(tmp_path):
    begin = time.process_time()
    assert contents(write(tmp_path / "a.tar", tar_of({"./" * 500_000 + "1.png": b"one"}))) == {"a.tar!/1.png": b"one"}
    assert time.process_time() - begin < 5


def test_no_member_has_the_name_of_a_nested_one(tmp_path):
    files = {
        "x.zip": zip_of({"1.png": b"within"}),
        "x.zip!/1.png": b"beside",
        "x.zip!%2F1.png": b"beside that",
        "Look!/1.png": b"no container",
    }
    others = [("x.zip", zip_of({"1.png": b"second"})), ("x.zip!2!/1.png", b"beside the second")]
    tar = b"".join(member(name, data) for name, data in (*files.items(), *others))
    assert contents(write(tmp_path / "a.tar", tar + bytes(1024))) == {
        "a.tar!/x.zip!/1.png": b"within",
        "a.tar!/x.zip!%2F1.png": b"beside",
        "a.tar!/x.zip!%2F1.png!2": b"beside that",
        "a.tar!/Look!/1.png": b"no container",
        "a.tar!/x.zip!2!/1.png": b"second",
        "a.tar!/x.zip!2!%2F1.png": b"beside the second",
    }


def test_no_file_has_the_name_of_a_member(tmp_path):
    write_files(tmp_path, {"x.zip": zip_of({"1.png": b"within"}), "x.zip!/1.png": b"file", "x.zip!/notes.txt": b""})
    write_files(tmp_path, {"Look!/1.png": b"no container"})
    assert contents(tmp_path) == {
        "Look!/1.png": b"no container",
        "x.zip!/1.png": b"within",
        "x.zip!%2F1.png": "quarantined: ambiguous name: it is that of a container's member",
        "x.zip!%2Fnotes.txt": "skipped: .txt",
    }


def test_a_bomb_that_is_put_there_after_the_listing_is_not_read_through(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_FREE", MIB)
    path = write(tmp_path / "a.tar.gz", gzip.compress(tar_of({"1.png": b"one"})))
    scans = source(path)
    entries, passed = list(scans.entries()), []
    write(path, gzip.compress(tar_of({"0.bin": bytes(9 * MIB), "1.png": b"one"}), 9))
    (read,) = scans.read(entries, lambda: passed.append(1))
    assert isinstance(read, OSError)
    assert "no longer what it was" in str(read.strerror)
    assert not passed


def test_a_directory_of_nothing_takes_no_memory(tmp_path):
    path, size = tmp_path / "a.zip", 3 << 30
    with path.open("wb") as file:
        file.seek(size)  # a hole: it takes no place on the disk
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, size - 1, 0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert contents(path) == {"a.zip": f"quarantined: damaged container: a directory of {size - 1} bytes"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_run_over_all_of_them_goes_on(tmp_path):
    pictures = {f"{i}.png": encode(gradient(40 + i, 30), "PNG") for i in range(4)}
    made = {
        "far.zip": zip_with_far_directory(),
        "member.zip": zip_with_far_member(),
        "bzip2.zip": zip_with_damaged_bzip2(),
        "digits.tar": tar_with_pax_size("9" * 5000),
        "numbers.tar": tar_of_names(["a" + "!2" * number for number in reversed(range(1500))] + ["a"]),
        "long.tar": tar_of_names(["b" * 5000 + ".png"]),
        "good.zip": zip_of(pictures),
        "good.zip!/9.png": b"file",
    }
    key = fixed_key(tmp_path / "key")
    folder = write_files(tmp_path / "source", made)
    options = PrepareOptions(sources=[folder], out=tmp_path / "archive", key=key, workers=1)
    summary = prepare(options)
    assert summary.samples == 4
    assert summary.unreadable == 0
    assert summary.quarantined == {
        "damaged container": 4,
        "not an image of a known format": 1,
        "name too long": 1,
        "ambiguous name": 1,
    }
    assert verify(Archive.open(options.out)) == []
    paths = [row["path"] for row in inputs_of(options)]
    assert len(set(paths)) == len(paths)
