"""DALI reads the shards that are written; an archive appears as a whole or not at all, and takes nobody's place."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def
from wds2idx import IndexCreator

from fastfgssl.archive.building.publish import Place
from fastfgssl.archive.building.shards import member_header
from fastfgssl.archive.lock import lock_folder
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.archives import make_samples, write
from helpers.images import encode, gradient, write_files

HOLDS = {"report.html", "manifest.json", "samples.arrow", "accounting.arrow", "shards"}


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


def test_overwrite_replaces_an_archive_only_when_the_new_one_is_complete(tmp_path, archive):
    before = (archive.path / "manifest.json").read_bytes()
    with Place(archive.path, overwrite=True).held():
        pass  # nothing is published
    assert (archive.path / "manifest.json").read_bytes() == before
    assert write(archive.path, make_samples([1]), overwrite=True).num_samples == 1
    assert list(tmp_path.iterdir()) == [archive.path]


def test_the_old_archive_comes_back_if_the_new_one_cannot_take_its_place(archive, monkeypatch):
    rename = Path.rename

    def refuse_new(self, target):
        if self.parent.name.endswith(".partial") and self.name == "archive":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(UserError, match=r"cannot write the archive .*: Input/output error"):
        write(archive.path, make_samples([1]), overwrite=True)
    assert Archive.open(archive.path).num_samples == 10
    assert not archive.path.with_name("archive.replaced").exists()


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


def test_two_writers_do_not_take_each_others_folder(tmp_path):
    who = r"\(process \d+ on .*, since .*\)"
    with Place(tmp_path / "archive").held():
        with pytest.raises(UserError, match=rf"partial is being written by another process {who}: wait for it"):
            write(tmp_path / "archive", make_samples([1]))
    assert verify(write(tmp_path / "archive", make_samples([1, 2]))) == []


def mount_point(monkeypatch, path: Path) -> None:
    """Makes a folder one, which no folder can take the place of."""
    is_mount, rename = Path.is_mount, Path.rename

    def refuse(self, target):
        if target == path or self == path:
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "is_mount", lambda self: self == path or is_mount(self))
    monkeypatch.setattr(Path, "rename", refuse)


@pytest.mark.parametrize("mounted", [False, True])
def test_an_empty_folder_may_become_the_archive(tmp_path, monkeypatch, mounted):
    out = tmp_path / "archive"
    out.mkdir()
    if mounted:
        mount_point(monkeypatch, out)
        (out / "lost+found").mkdir()
    assert verify(write(out, make_samples([1, 2]))) == []
    assert write(out, make_samples([3]), overwrite=True).num_samples == 1
    assert {path.name for path in out.iterdir()} == HOLDS | ({"lost+found"} if mounted else set())
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("mounted", [False, True])
@pytest.mark.parametrize("until", range(12))
def test_a_kill_while_it_is_published_loses_neither_archive(tmp_path, monkeypatch, mounted, until):
    """The process ends at any of the moves: the next run finds the old archive or the new one."""
    out = tmp_path / "archive"
    out.mkdir()
    if mounted:
        mount_point(monkeypatch, out)
    old = write(out, make_samples([10, 20])).fingerprint
    with monkeypatch.context() as killed:
        rename, rmtree, moves = Path.rename, shutil.rmtree, []

        def until_killed(what):
            def act(*arguments, **options):
                moves.append(arguments)
                if len(moves) > until:
                    raise KeyboardInterrupt  # and nothing is put in order
                return what(*arguments, **options)

            return act

        publish = Place.publish

        def watched(place):
            killed.setattr(Path, "rename", until_killed(rename))
            killed.setattr(shutil, "rmtree", until_killed(rmtree))
            publish(place)

        killed.setattr(Place, "publish", watched)
        with suppress(KeyboardInterrupt):
            write(out, make_samples([1]), overwrite=True)
    with Place(out).held():
        pass
    archive = Archive.open(out)
    assert verify(archive) == []
    assert archive.fingerprint == old or archive.num_samples == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"archive", "archive.partial"}  # which has parts
    assert {path.name for path in out.iterdir()} - {".partial"} <= HOLDS


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
    """A limit on the size of a file stands in for the disk: of the listing, of a part, of a table."""
    program = """
import resource, sys
from pathlib import Path
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.runtime.errors import UserError
if __name__ == "__main__":
    for limit in (1_000, 2_000, 6_000, 30_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            prepare(PrepareOptions(sources=[Path(sys.argv[1])], out=Path(sys.argv[2]), workers=1))
        except UserError as error:
            print(error)
"""
    pictures = {f"{i:02d}.png": encode(gradient(20 + i, 30), "PNG") for i in range(30)}
    source = write_files(tmp_path / "source", pictures)
    script = tmp_path / "script.py"
    script.write_text(program)
    command = [sys.executable, str(script), str(source), str(tmp_path / "archive")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"cannot write the archive {tmp_path / 'archive'}: File too large\n" * 4
    assert result.stderr == ""
    assert not (tmp_path / "archive").exists()
    prepare(PrepareOptions(sources=[source], out=tmp_path / "archive", workers=1))
    assert Archive.open(tmp_path / "archive").num_samples == 30


@pytest.mark.parametrize(("name", "size"), [("000000000.jpg", 0), ("999999999.json", 4711), ("x" * 100, 8**11 - 1)])
def test_headers_of_members_are_those_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    assert member_header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("1.jpg", 8**11)])
def test_what_no_header_can_tell_is_refused(name, size):
    with pytest.raises(ValueError, match="has no place for a member"):
        member_header(name, size)
