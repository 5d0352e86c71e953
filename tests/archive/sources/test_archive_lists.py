"""A list of files is a source: its order, its names, and what becomes of lines that lead to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastfgssl.archive.listing import find_images
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.opening import open_sources
from fastfgssl.runtime.errors import UserError
from helpers.containers import contents_of, write, zip_of
from helpers.images import encode, gradient, inputs_of, write_files


def contents(path: Path) -> dict[str, bytes | str]:
    (source,) = open_sources([], [path], SourceOptions(depth=3))
    return contents_of(source)


def test_lines_are_paths_from_where_the_list_lies(tmp_path):
    write_files(tmp_path / "data", {"b/2.png": b"two", "1.png": b"one", "x y.png": b"space", "notes.txt": b""})
    write(tmp_path / "elsewhere/3.png", b"three")
    write(tmp_path / "data/scans.zip", zip_of({"4.png": b"four"}))
    (tmp_path / "data/link.png").symlink_to(tmp_path / "elsewhere/3.png")
    lines = [
        "b/2.png",
        "./b//2.png",
        "",
        "x y.png\r",
        f"{tmp_path}/data/1.png",
        f"{tmp_path}/elsewhere/3.png",
        "../elsewhere/3.png",
        "scans.zip",
        "link.png",
        "notes.txt",
        "b.png",
        "folder.png",
        "odd\0.png",
        "odd\0",
        "A0001",
        "LIESMICH",
    ]
    (tmp_path / "data/folder.png").mkdir()
    scan = bytes(128) + b"DICM"  # found by its bytes, as in a folder
    write_files(tmp_path / "data", {"A0001": scan, "LIESMICH": b"text" * 99})
    found = contents(write(tmp_path / "data/list", b"\xef\xbb\xbf" + "\n".join(lines).encode()))
    assert found == {
        "b/2.png": b"two",
        "x y.png": b"space",
        "1.png": b"one",
        f"{tmp_path}/elsewhere/3.png": b"three",
        "../elsewhere/3.png": b"three",
        "scans.zip!/4.png": b"four",
        "link.png": b"three",
        "notes.txt": "skipped: .txt",
        "b.png": "FileNotFoundError: No such file or directory",
        "folder.png": "skipped: not a regular file",
        "odd\0.png": "OSError: no file can have this name",
        "odd\0": "skipped: no suffix",
        "A0001": scan,
        "LIESMICH": "skipped: no suffix",
    }
    assert list(found)[:4] == ["b/2.png", "x y.png", "1.png", f"{tmp_path}/elsewhere/3.png"]


def test_a_list_adds_what_a_folder_calls_the_same(tmp_path):
    folder = write_files(tmp_path / "data", {f"{i}.png": encode(gradient(20 + i, 19), "PNG") for i in range(9)})
    some = write(folder / "some.txt", b"3.png\n1.png\nmissing.png\n")
    options = {"out": tmp_path / "archive", "workers": 1}
    summary = prepare(PrepareOptions(lists=[some], **options))
    assert (summary.samples, summary.unreadable) == (2, 1)
    rows = {Path(row["path"]).name: row["outcome"] for row in inputs_of(PrepareOptions(lists=[some], **options))}
    assert rows == {"3.png": "written", "1.png": "written", "missing.png": "unreadable"}
    summary = prepare(PrepareOptions(sources=[folder], **options))
    assert (summary.known, summary.added) == (2, 7)


def test_lists_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"the list .*none.txt does not exist"):
        find_images([], lists=[tmp_path / "none.txt"])
    with pytest.raises(UserError, match=r"cannot read the list .*: Is a directory"):
        find_images([], lists=[tmp_path])
    with pytest.raises(UserError, match=r"no images below .*empty.txt, nor any other files"):
        find_images([], lists=[write(tmp_path / "empty.txt", b"\n")])
