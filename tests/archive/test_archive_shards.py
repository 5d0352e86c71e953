"""DALI reads the shards that are written; an archive appears as a whole or not at all, and takes nobody's place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def
from wds2idx import IndexCreator

from fastfgssl.archive.lock import lock_folder
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.shards import ArchiveWriter, Sample
from fastfgssl.runtime.errors import UserError
from helpers.archives import make_samples, write


@pytest.fixture
def archive(tmp_path) -> Archive:
    return write(tmp_path / "archive", make_samples([100, 0, 512, 700, 1, 2000, 5, 511, 513, 40]), shard_bytes=1300)


def test_dali_reads_the_shards_by_our_index(tmp_path):
    samples = make_samples([100, 300, 512, 700, 1, 2000, 5, 511, 513, 40])
    archive = write(tmp_path / "archive", samples, shard_bytes=1300)
    shards = [archive.shard_path(shard) for shard in range(len(archive.shard_sizes))]

    @pipeline_def(batch_size=len(samples), num_threads=1, device_id=None)
    def read():
        return tuple(
            fn.readers.webdataset(
                paths=list(map(str, shards)),
                index_paths=[str(shard.with_suffix(".idx")) for shard in shards],
                ext=["jpg", "png", "tif"],
                missing_component_behavior="empty",
            )
        )

    pipeline = read()
    pipeline.build()
    outputs = [[np.asarray(sample) for sample in output] for output in pipeline.run()]
    assert [b"".join(part.tobytes() for part in parts) for parts in zip(*outputs, strict=True)] == [
        sample.data for sample in samples
    ]


def test_index_is_that_of_dalis_own_tool(archive, tmp_path):
    for shard in range(len(archive.shard_sizes)):
        with IndexCreator(str(archive.shard_path(shard)), str(tmp_path / "idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "idx").read_text() == archive.shard_path(shard).with_suffix(".idx").read_text()


def test_nothing_is_left_of_a_writer_that_fails(tmp_path):
    def fail() -> None:
        with ArchiveWriter(tmp_path / "archive") as writer:
            writer.add(Sample("x", b"data", "png", 1, 1, 8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_an_archive_only_when_the_new_one_is_complete(tmp_path, archive):
    before = (archive.path / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="archive exists; --overwrite replaces an archive"):
        write(archive.path, make_samples([1]))
    with ArchiveWriter(archive.path, overwrite=True):
        pass  # no commit
    assert (archive.path / "manifest.json").read_bytes() == before
    assert write(archive.path, make_samples([1]), overwrite=True).num_samples == 1
    assert list(tmp_path.iterdir()) == [archive.path]


def test_the_old_archive_comes_back_if_the_new_one_cannot_take_its_place(archive, monkeypatch):
    rename = Path.rename

    def refuse_partial(self, target):
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_partial)
    with pytest.raises(UserError, match=r"cannot write the archive .*: Input/output error"):
        write(archive.path, make_samples([1]), overwrite=True)
    assert Archive.open(archive.path).num_samples == 10
    assert list(archive.path.parent.iterdir()) == [archive.path]


def test_nothing_but_an_archive_is_ever_deleted(tmp_path, archive):
    (archive.path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="archive holds other files than an archive's"):
        write(archive.path, make_samples([1]), overwrite=True)
    for name in ("folder", "new.partial", "new.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("mine")
    with pytest.raises(UserError, match=r"folder is not an archive"):
        write(tmp_path / "folder", make_samples([1]), overwrite=True)
    with pytest.raises(UserError, match=r"new.partial is in the way and no archive: move it away"):
        write(tmp_path / "new", make_samples([1]))
    assert len(list(tmp_path.glob("*/precious"))) == 3


def test_leftover_of_a_killed_run_is_replaced(tmp_path):
    program = """
import os, sys
from pathlib import Path
from fastfgssl.archive.shards import ArchiveWriter, Sample
writer = ArchiveWriter(Path(sys.argv[1])).__enter__()
writer.add(Sample("x", b"data", "png", 1, 1, 8))
os._exit(0)  # and never leaves it
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "archive")], check=True)
    assert (tmp_path / "archive.partial" / "shards" / "shard-000000.tar").exists()
    assert write(tmp_path / "archive", make_samples([1, 2])).num_samples == 2
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]
    assert not list((tmp_path / "archive").glob(".*"))


def test_two_writers_do_not_take_each_others_folder(tmp_path):
    with ArchiveWriter(tmp_path / "archive") as first:
        first.add(Sample("x", b"data", "png", 1, 1, 8))
        with pytest.raises(UserError, match=r"archive\.partial is being written by another process: wait for it"):
            write(tmp_path / "archive", make_samples([1]))
        first.commit()
    assert Archive.open(tmp_path / "archive").verify() == []
    assert write(tmp_path / "archive", make_samples([1, 2]), overwrite=True).num_samples == 2


def test_a_lock_on_a_folder_that_has_been_renamed_is_not_a_lock(tmp_path, monkeypatch):
    """The first writer renames the folder between the second's opening of the file and its locking."""
    folder, locked = tmp_path / "archive.partial", []

    def lock(file, operation):
        if not locked:
            folder.rename(tmp_path / "archive")
        locked.append(file.name)

    monkeypatch.setattr("fcntl.flock", lock)
    with lock_folder(folder):
        assert len(locked) == 2
        assert folder.exists()


def test_a_full_disk_is_one_clear_error(tmp_path):
    """A limit on the size of a file stands in for the disk, at every stage of the writing."""
    program = """
import resource, sys
from pathlib import Path
from fastfgssl.archive.shards import ArchiveWriter, Sample
from fastfgssl.runtime.errors import UserError
for limit in (1_000, 20_000, 60_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with ArchiveWriter(Path(sys.argv[1]), shard_bytes=10_000) as writer:
            for i in range(300):
                writer.add(Sample(f"{i:0300d}", bytes(100), "png", 1, 1, 8))
            writer.commit()
    except UserError as error:
        print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "archive")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"cannot write the archive {tmp_path / 'archive'}: File too large\n" * 3
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []
