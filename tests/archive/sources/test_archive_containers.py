"""What lies in zips and tars is found and read as in a folder, and a damage costs no more than it must."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.containers import WithContainers
from fastfgssl.archive.sources.folder import FolderSource
from helpers.containers import container_of, contents_of, tar_of, write, zip_of
from helpers.images import write_files

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst")
FILES = {f"{'ab'[i % 2]}/{i:02d}.png": random.Random(i).randbytes(i * 997) for i in range(20)}
LONG = f"{'long/' * 60}1.png"


def source(path: Path, **options: object) -> WithContainers:
    options = SourceOptions(**{"depth": 3} | options)
    return WithContainers(FolderSource(path, options), options)


def contents(path: Path, **options: object) -> dict[str, bytes | str]:
    return contents_of(source(path, **options))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_members_are_entries(tmp_path, suffix):
    files = dict(sorted(FILES.items())) | {LONG: b"long name", "ß.png": b"umlaut"}
    path = write(
        tmp_path / f"Scans{suffix.upper()}", container_of(suffix, {f"./{name}": d for name, d in files.items()})
    )
    found = contents(path)
    assert found == {f"{path.name}!/{name}": data for name, data in files.items()}
    assert list(found) == [f"{path.name}!/{name}" for name in (sorted(files) if suffix == ".zip" else files)]
    assert contents(tmp_path) == found
    assert contents(path, depth=0) == {path.name: f"skipped: {'.' + suffix.split('.')[-1]}"} or suffix == ".tgz"


@pytest.mark.parametrize("outer", SUFFIXES)
@pytest.mark.parametrize("inner", SUFFIXES)
def test_one_inside_another_to_a_stated_depth(tmp_path, outer, inner):
    deepest = container_of(outer, {"deep.png": b"deep", "deepest.zip": zip_of({"1.png": b""})})
    middle = container_of(inner, {"1.png": b"one", f"2{outer}": deepest, "3.png": b"three"})
    path = write(
        tmp_path / f"scans{outer}", container_of(outer, {"0.png": b"zero", f"in{inner}": middle, "z.png": b"z"})
    )
    top, within = f"scans{outer}!/", f"scans{outer}!/in{inner}!/"
    assert contents(path) == {
        f"{top}0.png": b"zero",
        f"{within}1.png": b"one",
        f"{within}2{outer}!/deep.png": b"deep",
        f"{within}2{outer}!/deepest.zip": "skipped: .zip below --nested",
        f"{within}3.png": b"three",
        f"{top}z.png": b"z",
    }
    assert list(contents(path, depth=1)) == [f"{top}0.png", f"{top}in{inner}", f"{top}z.png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_dicom_is_found_by_its_bytes_as_in_a_folder(tmp_path, suffix):
    """On a disc from a PACS, names have eight letters and no suffix."""
    scan = bytes(128) + b"DICM" + random.Random(0).randbytes(9000)
    files = {"DICOM/A0001": scan, "DICOM/EE1F.Doe": scan[:200], "DICOMDIR": scan, "LIESMICH": b"text" * 99, "Z": b""}
    folder = write_files(tmp_path / "disc", files)
    expected = {name: data for name, data in files.items() if data.startswith(bytes(128))}
    expected |= {"LIESMICH": "skipped: no suffix", "Z": "skipped: no suffix"}
    assert contents(folder) == expected
    nested = container_of(suffix, {f"in{suffix}": container_of(suffix, files)})
    for depth, path in {1: write(tmp_path / f"a{suffix}", container_of(suffix, files)),
                        2: write(tmp_path / f"b{suffix}", nested)}.items():  # fmt: skip
        above = f"{path.name}!/" if depth == 1 else f"{path.name}!/in{suffix}!/"
        assert contents(path) == {f"{above}{name}": data for name, data in expected.items()}
    (said,) = contents(write(tmp_path / f"cut{suffix}", container_of(suffix, {"A0001": scan})[:5000])).values()
    assert said.startswith("quarantined: damaged container")


def test_a_compressed_tar_is_read_once_by_who_reads_in_order(tmp_path, monkeypatch):
    path = write(tmp_path / "scans.tgz", container_of(".tgz", FILES))
    scans = source(path)
    entries = list(scans.entries())
    opened = []
    whole = FolderSource.open
    monkeypatch.setattr(FolderSource, "open", lambda self, name: opened.append(name) or whole(self, name))
    for begin in range(0, len(entries), 3):  # as chunks that one worker gets
        assert list(scans.read(entries[begin : begin + 3])) == list(FILES.values())[begin : begin + 3]
    assert len(opened) == 1
    assert list(pickle.loads(pickle.dumps(scans)).read(entries[5:6])) == [list(FILES.values())[5]]
    assert list(scans.read(entries[2:4])) == list(FILES.values())[2:4]  # back
    assert len(opened) == 3


def test_who_reads_says_that_it_is_on_its_way(tmp_path):
    files = {"1.bin": bytes(5 << 20), "2.png": b"two"}
    scans = source(write(tmp_path / "scans.tgz", container_of(".tgz", files)))
    calls = []
    (entry,) = (entry for entry in scans.entries() if not entry.skip)
    assert list(scans.read([entry], lambda: calls.append(None))) == [b"two"]
    assert len(calls) >= 5


def test_hostile_names_links_and_devices(tmp_path):
    others = []
    for name, kind in {
        "link.png": b"2",
        "hard.png": b"1",
        "dev.png": b"3",
        "pipe.png": b"6",
        "folder.png": b"5",
    }.items():
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        others.append(info)
    files = {"../../up.png": b"up", "/etc/top.png": b"top", "__MACOSX/1.png": b"junk", "notes.txt": b"text"}
    found = contents(write(tmp_path / "a.tar", tar_of(files, others=others)))
    assert found == {
        "a.tar!/link.png": "skipped: link in a container",
        "a.tar!/hard.png": "skipped: link in a container",
        "a.tar!/dev.png": "skipped: not a regular file",
        "a.tar!/pipe.png": "skipped: not a regular file",
        "a.tar!/../../up.png": b"up",  # a name, and no path that anything is written to or read from
        "a.tar!//etc/top.png": b"top",
        "a.tar!/__MACOSX/1.png": "skipped: AppleDouble",
        "a.tar!/notes.txt": "skipped: .txt",
    }
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr(link, "/etc/passwd")
    assert contents(write(tmp_path / "a.zip", buffer.getvalue())) == {"a.zip!/link.png": "skipped: link in a container"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_repeat_and_names_that_are_no_utf8(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for data in (b"one", b"two", b"three"):
            out.writestr("1.png", data)
    repeated = {"1.png": b"one", "1.png!2": b"two", "1.png!3": b"three"}
    assert contents(write(tmp_path / "a.zip", buffer.getvalue())) == {f"a.zip!/{k}": v for k, v in repeated.items()}
    one = tar_of({"1.png": b"one"})[:1024]
    tar = one + one.replace(b"one", b"two") + tar_of({"1.png": b"three"})
    assert contents(write(tmp_path / "a.tar", tar)) == {f"a.tar!/{k}": v for k, v in repeated.items()}

    latin = zip_of({"ÄÖ.png": b"x"}).replace("ÄÖ".encode(), b"\xc4\xd6\xff\xfe")  # though it says that it is UTF-8
    assert contents(write(tmp_path / "b.zip", latin)) == {"b.zip!/\\xc4\\xd6\\xff\\xfe.png": b"x"}
    tar = tar_of({"ÄÖ.png": b"x"}, tarfile.GNU_FORMAT)
    checksum = int(tar[148:154], 8)
    raw = "ÄÖ".encode()
    new = b"\xc4\xd6\xff\xfe"
    tar = tar.replace(raw, new).replace(b"%06o" % checksum, b"%06o" % (checksum + sum(new) - sum(raw)), 1)
    assert contents(write(tmp_path / "b.tar", tar)) == {"b.tar!/\\xc4\\xd6\\xff\\xfe.png": b"x"}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.zst"])
def test_of_a_container_that_is_cut_off_what_is_whole_is_kept(tmp_path, suffix):
    whole = container_of(suffix, FILES)
    path = write(tmp_path / f"scans{suffix}", whole[: len(whole) * 2 // 3])
    *kept, (name, said) = contents(path).items()
    assert dict(kept).items() <= {f"{path.name}!/{member}": data for member, data in FILES.items()}.items()
    assert len(kept) > 8
    assert name == path.name
    assert said.startswith("quarantined: damaged container: ")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar"])
def test_one_that_is_cut_off_inside_another_costs_no_neighbour(tmp_path, suffix):
    inner = container_of(suffix, FILES)[:-20000]
    files = {"0.png": b"0", f"in{suffix}": inner, "z.png": b"z"}
    for outer in (".zip", ".tar", ".tar.gz"):
        path = write(tmp_path / f"scans{outer}", container_of(outer, files))
        found = contents(path)
        assert found[f"scans{outer}!/z.png"] == b"z"
        assert found[f"scans{outer}!/in{suffix}"].startswith("quarantined: damaged container: ")
        assert sum(isinstance(data, bytes) for data in found.values()) > 15


def test_a_zip_that_was_written_to_a_pipe_and_cut_off(tmp_path):
    class Pipe(io.RawIOBase):
        written = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            self.written += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as out:  # sizes follow the members
        for name, data in FILES.items():
            out.writestr(name, data)
    found = contents(write(tmp_path / "whole.zip", pipe.written))
    assert list(found.values()) == [data for _, data in sorted(FILES.items())]
    found = contents(write(tmp_path / "cut.zip", pipe.written[: len(pipe.written) // 2]))
    assert found.pop("cut.zip") == "quarantined: damaged container: it has no directory: is it cut off?"
    assert len(found) > 8
    assert found.items() <= {f"cut.zip!/{name}": data for name, data in FILES.items()}.items()


def test_what_is_no_container_is_one_outcome(tmp_path):
    for suffix in SUFFIXES:
        for text in (b"", b"<html>not found</html>" * 99):
            found = contents(write(tmp_path / f"scans{suffix}", text))
            (said,) = found.values()
            assert said.startswith("quarantined: damaged container: ")


def test_damaged_bytes_are_told(tmp_path):
    data = bytearray(zip_of({"1.png": b"0123456789" * 9, "2.png": b"two"}, zipfile.ZIP_STORED))
    data[50] ^= 1
    found = contents(write(tmp_path / "a.zip", bytes(data)))
    assert found["a.zip!/1.png"] == "Unusable: damaged container: a member's checksum is another than its bytes'"
    assert found["a.zip!/2.png"] == b"two"
    data = bytearray(gzip.compress(tar_of(FILES)))
    data[-6] ^= 1  # the checksum
    found = contents(write(tmp_path / "a.tar.gz", bytes(data)))
    assert "incorrect data check" in found.pop("a.tar.gz")
    assert list(found.values()) == list(FILES.values())


def test_encrypted_members_and_unknown_methods(tmp_path):
    data = bytearray(zip_of({"1.png": b"one", "2.png": b"two"}))
    directory = data.index(b"PK\1\2")
    data[directory + 8] |= 1
    data[data.index(b"PK\1\2", directory + 1) + 10] = 9
    assert contents(write(tmp_path / "a.zip", bytes(data))) == {
        "a.zip!/1.png": "quarantined: encrypted",
        "a.zip!/2.png": "quarantined: compressed in a way that is not read: method 9",
    }


def test_zip64_and_something_before_the_zip(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out, out.open("1.png", "w", force_zip64=True) as member:
        member.write(b"one")
    data = buffer.getvalue()
    end = data.rindex(b"PK\5\6")
    *_, count, size, offset, _ = struct.unpack("<4s4H2LH", data[end:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    small = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    large = data[:end] + record + locator + small
    assert contents(write(tmp_path / "a.zip", large)) == {"a.zip!/1.png": b"one"}
    assert contents(write(tmp_path / "b.zip", b"#!/bin/sh\n" + large)) == {"b.zip!/1.png": b"one"}
    with_program = b"MZ" * 999 + zip_of(FILES)
    assert list(contents(write(tmp_path / "c.zip", with_program)).values()) == [d for _, d in sorted(FILES.items())]
