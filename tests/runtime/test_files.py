"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import threading

import pytest

from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import check_writable, staged, write_json, write_whole


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")

    def fail(stream) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(file, fail)
    assert file.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_one_and_its_file_keeps_its_mode(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch(0o640)
    link.symlink_to(target)
    write_json(link, {"value": 1})
    assert link.is_symlink()
    assert json.loads(target.read_text()) == {"value": 1}
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_new_private_file_is_never_readable_by_others(tmp_path):
    modes = []
    write_whole(tmp_path / "names", lambda stream: modes.append(os.fstat(stream.fileno()).st_mode & 0o777), mode=0o600)
    assert modes == [0o600]
    assert (tmp_path / "names").stat().st_mode & 0o777 == 0o600


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_json(pipe, [1])
    reader.join()
    assert (json.loads(read[0]), pipe.is_fifo()) == ([1], True)


def test_what_cannot_be_written_is_known_before(tmp_path):
    check_writable(tmp_path / "new")
    (tmp_path / "old").write_text("kept")
    check_writable(tmp_path / "old")
    check_writable(tmp_path.__class__("/dev/stdout"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "kept")]
    check_writable(tmp_path / "made" / "for" / "file")
    assert list((tmp_path / "made").rglob("*")) == [tmp_path / "made" / "for"]
    for path, reason in (
        (tmp_path, f"write {tmp_path}: Is a directory"),
        (tmp_path / "old" / "file", f"write {tmp_path / 'old'}: File exists"),
    ):
        with pytest.raises(UserError, match=f"^cannot {reason}$"):
            check_writable(path)


def test_files_are_moved_together_or_not_at_all(tmp_path):
    (tmp_path / "one").write_text("earlier")

    def fail() -> None:
        with staged(tmp_path) as folder:
            (folder / "one").write_text("later")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (tmp_path / "one").read_text() == "earlier"
    with staged(tmp_path) as folder:
        for name in ("one", "two"):
            (folder / name).write_text("later")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "later", "two": "later"}
    with pytest.raises(OSError, match="No such file"), staged(tmp_path / "nowhere"):
        pass
