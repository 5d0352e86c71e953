"""What a loader takes, it gives back: threads, descriptors, maps; and it takes no more than the system has."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.data import open_files
from fastfgssl.data.open_files import OPEN_SHARDS
from fastfgssl.data.reader import Reader
from fastfgssl.runtime.errors import UserError
from helpers.loader import loader
from helpers.paths import ROOT


def held(archive_path: Path) -> tuple[int, int, int]:
    """Threads, descriptors, and maps of the archive's files that this process has."""
    maps = Path("/proc/self/maps").read_text()
    threads, descriptors = (len(list(Path(f"/proc/self/{name}").iterdir())) for name in ("task", "fd"))
    return threads, descriptors, maps.count(str(archive_path))


@pytest.mark.parametrize("end", ["close", "with", "del", "exhausted"])
def test_ten_loaders_leave_nothing_behind_without_a_collection(archive_path, end):
    def use() -> None:
        batches = loader(archive_path)
        if end == "with":
            with batches:
                next(batches)
            return
        for _ in range(9 if end == "exhausted" else 2):
            next(batches)
        if end == "close":
            batches.close()

    use()  # what a process sets up once
    gc.collect()
    gc.disable()
    try:
        before = held(archive_path)
        for _ in range(10):
            use()
        for _ in range(100):  # a thread that was not waited for may be ending
            after = held(archive_path)
            if all(now <= then for now, then in zip(after, before, strict=True)):
                break
            time.sleep(0.05)
    finally:
        gc.enable()
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)


def test_a_closed_loader_makes_no_batch(archive_path):
    batches = loader(archive_path)
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == []


def test_a_reader_gives_its_shards_back_and_opens_them_again(archive_path):
    archive, before = Archive.open(archive_path), len(OPEN_SHARDS)
    reader = Reader(archive)
    first = reader.read(np.arange(84))
    assert len(OPEN_SHARDS) == before + len(archive.shard_sizes)
    reader.close()
    assert len(OPEN_SHARDS) == before
    for a, b in zip(first, reader.read(np.arange(84)), strict=True):
        np.testing.assert_array_equal(a, b)
    del reader
    assert len(OPEN_SHARDS) == before


def test_readers_share_one_limit(archive_path, monkeypatch):
    archive = Archive.open(archive_path)
    monkeypatch.setattr(open_files, "_limit", lambda: 3)
    readers = [Reader(archive) for _ in range(5)]
    for reader in readers:
        assert not reader.find_damage(np.arange(84), reader.read(np.arange(84)))
        assert len(OPEN_SHARDS) <= 3


def test_a_shard_that_is_gone_is_named(archive_path, tmp_path):
    archive = Archive.open(shutil.copytree(archive_path, tmp_path / "archive"))
    archive.shard_path(0).unlink()
    with pytest.raises(UserError, match=r"cannot read .*shard-000000.tar: No such file"):
        Reader(archive).read(np.arange(2))


_EIGHT_LOADERS = """
import itertools, os, resource, sys
from helpers.loader import loader
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
loaders = [loader(sys.argv[1], stop=20) for _ in range(8)]
most = 0
for batches in zip(*loaders):
    most = max(most, len(os.listdir("/proc/self/fd")))
print(most)
"""


def test_eight_loaders_over_many_shards_stay_within_the_limit_of_descriptors(phantom_folder, tmp_path):
    many = tmp_path / "many"
    prepare(PrepareOptions(sources=[phantom_folder / "images"], out=many, shard_size=0.001))  # a sample a shard
    assert len(Archive.open(many).shard_sizes) == 84
    found = subprocess.run(
        [sys.executable, "-c", _EIGHT_LOADERS, str(many)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert 66 <= int(found.stdout) < 150  # a third of the limit is used, and not eight times 84
