"""A node that does not see the files of the machine that asks says so, before it does anything."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from fastfgssl.archive.cluster import shared_files as module
from fastfgssl.archive.cluster.shared_files import SharedFiles, shared_files
from fastfgssl.archive.listing import find_images
from fastfgssl.archive.sources.base import SourceOptions
from helpers.containers import zip_of
from helpers.images import write_files


@pytest.fixture
def parts(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "_PAUSES", (0.0, 0.0))
    (tmp_path / "parts").mkdir()
    return tmp_path / "parts"


def asked(parts: Path, *sources: Path):
    listing = find_images(sources, SourceOptions(depth=1))
    return shared_files(parts, listing, listing.images)


def on_a_node(check: SharedFiles) -> str:
    return pickle.loads(pickle.dumps(check))()


def test_one_that_sees_all_may_take_part_and_nothing_stays(parts, tmp_path):
    source = write_files(tmp_path / "source", {"a/1.png": b"12", "2.png": b"1", "b.zip": zip_of({"3.png": b"123"})})
    other = write_files(tmp_path / "other", {"4.png": b"4"})
    with asked(parts, source, other) as check:
        assert len(check.samples) == 2  # of each source the smallest
        assert on_a_node(check) == ""
        assert [path.name for path in check.token.parent.iterdir()] == ["token"]
    assert list(parts.iterdir()) == []


def test_one_with_another_folder_of_parts_says_what_to_do(parts, tmp_path):
    source = write_files(tmp_path / "source", {"1.png": b"1"})
    with asked(parts, source) as check:
        check.token.write_text("of another run")
        assert on_a_node(check).startswith(f"does not see {parts} as this machine does (another file is there): --out")
        shutil.rmtree(parts)
        assert f"does not see {parts} as this machine does (No such file or directory)" in on_a_node(check)


def test_one_without_the_sources_says_which(parts, tmp_path):
    source = write_files(tmp_path / "source", {"1.png": b"1"})
    with asked(parts, source) as check:
        (source / "1.png").write_bytes(b"2")
        assert on_a_node(check).startswith(f"cannot read {source}/1.png as this machine does (other bytes): sources")
        shutil.rmtree(source)
        source.mkdir()  # a mount point on which nothing is mounted
        assert f"cannot read {source}/1.png as this machine does (No such file" in on_a_node(check)


def test_what_cannot_be_read_here_is_asked_of_no_node(parts, tmp_path):
    source = write_files(tmp_path / "source", {"1.png": b"1"})
    listing = find_images([source])
    (source / "1.png").unlink()
    with shared_files(parts, listing, listing.images) as check:
        assert on_a_node(check) == ""
