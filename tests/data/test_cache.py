"""Archives in a bucket: batches are those of a local one, and what is here stays within its budget."""

from __future__ import annotations

import fcntl
import json
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fastfgssl.archive.cache import open_cached
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.config.files import config_from_values, config_to_values
from fastfgssl.data.opening import open_archive
from fastfgssl.data.reader import Reader
from fastfgssl.evaluation.checkpoint import evaluate
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from helpers.bucket import Bucket, put, put_folder, serve_bucket
from helpers.images import fixed_key
from helpers.loader import loader, tensors
from helpers.ranks import run_on_ranks


@pytest.fixture(scope="module")
def archive_path(phantom_folder, tmp_path_factory) -> Path:
    """An archive of twelve shards."""
    folder = tmp_path_factory.mktemp("archives")
    key = fixed_key(folder / "key")
    prepare(PrepareOptions(sources=[phantom_folder], out=folder / "phantoms", shard_size=0.01, key=key, workers=1))
    return folder / "phantoms"


@pytest.fixture(scope="module")
def served(archive_path) -> Iterator[Bucket]:
    """One server for all of these tests, which has that archive."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with serve_bucket() as bucket:
        put_folder(bucket, archive_path, "a/phantoms")
        yield bucket


@pytest.fixture
def bucket(served) -> Bucket:
    served.failures, served.match, served.latency, served.read = 0, "", 0.0, []
    return served


@pytest.fixture
def url(bucket) -> str:
    return "s3://hospital/a/phantoms"


def held(cache: Path) -> int:
    """Bytes of shards in a cache, of those that are on their way too, while none comes or goes."""
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in cache.glob("*/shards/*"))


def largest(archive_path: Path) -> int:
    return int(Archive.open(archive_path).shard_bytes.max())


def test_batches_equal_those_of_a_local_archive_within_the_budget(bucket, url, archive_path, tmp_path):
    budget = 5 * largest(archive_path)
    archive = open_cached(url, tmp_path, budget)
    assert archive.shard_bytes.sum() > budget
    most = 0
    with loader(archive, stop=21) as ours, loader(archive_path, stop=21) as theirs:  # three epochs
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)
            assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
            most = max(most, held(tmp_path))
    assert largest(archive_path) < most <= budget
    names = [name for name in bucket.read if name.endswith(".tar")]
    assert len(names) > len(set(names)) == len(archive.shard_sizes)  # some went, and came again
    assert not list(tmp_path.glob("*/shards/*.part"))


def test_a_copy_of_it_reads_the_same(bucket, url, archive_path, tmp_path):
    copied = pickle.loads(pickle.dumps(open_cached(url, tmp_path, 1 << 30)))
    ids = np.arange(copied.num_samples)
    for a, b in zip(Reader(copied).read(ids), Reader(Archive.open(archive_path)).read(ids), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_shard_gets_its_name_while_nobody_counts(bucket, url, archive_path, tmp_path):
    archive = open_cached(url, tmp_path, 1 << 30)
    (shards,) = tmp_path.glob("*/shards")
    part, bucket.latency = shards / "shard-000000.tar.part", 0.5
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(Reader(archive).read, np.array([0]))
        while not part.exists():
            time.sleep(0.01)
        with (tmp_path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(TimeoutError):
                read.result(timeout=1.5)
            assert part.stat().st_size == archive.shard_bytes[0]
        assert len(read.result()) == 1
    assert not part.exists()


def test_what_is_here_is_not_fetched_again(bucket, url, archive_path, tmp_path):
    for times in (1, 1):
        archive = open_cached(url, tmp_path, 1 << 30)
        ids = np.arange(archive.num_samples)
        read, theirs = Reader(archive).read(ids), Reader(Archive.open(archive_path)).read(ids)
        assert [bytes(image) for image in read] == [bytes(image) for image in theirs]
        names = [name for name in bucket.read if not name.endswith("manifest.json")]
        assert sorted(map(names.count, set(names))) == [times] * (1 + len(archive.shard_sizes))


def test_shards_come_before_they_are_read(bucket, url, archive_path, tmp_path):
    archive = open_cached(url, tmp_path, 1 << 30)
    with loader(archive, stop=1 << 20) as batches:
        next(batches)
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("*/shards/*.tar"))) < len(archive.shard_sizes) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert held(tmp_path) == archive.shard_bytes.sum()


def test_the_disk_of_a_shard_that_went_is_given_back(url, archive_path, tmp_path):
    archive = open_cached(url, tmp_path, 3 * largest(archive_path))
    with loader(archive, stop=30) as batches:
        for _ in batches:
            opened = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
            assert sum("(deleted)" in name and str(tmp_path) in name for name in opened) <= 5


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "shards/../../outside.tar"])
def test_a_manifest_cannot_name_other_files(bucket, archive_path, tmp_path, name):
    manifest = json.loads((archive_path / "manifest.json").read_bytes())
    manifest["shards"][0]["name"] = name
    put(bucket, {"hostile/manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(UserError, match=r"hostile/manifest.json is damaged: it names other files"):
        open_cached("s3://hospital/hostile", tmp_path / "cache", 1 << 30)
    assert not (tmp_path / "cache").exists()


def test_a_server_that_fails_for_a_while_and_one_that_gives_other_bytes(bucket, url, archive_path, tmp_path):
    archive = open_cached(url, tmp_path, 1 << 30)
    bucket.match, bucket.failures = ".tar", 2
    assert len(Reader(archive).read(np.array([0]))) == 1
    assert bucket.failures == 0
    bucket.failures = 1 << 30
    last = len(archive.shard_sizes) - 1
    name = archive.shard_path(last).name
    with pytest.raises(UserError, match=rf"cannot read s3://hospital/a/phantoms/shards/{name}: .*the same command"):
        Reader(archive).read(np.array([archive.num_samples - 1]))
    bucket.failures = 0
    key = f"a/phantoms/shards/{name}"
    put(bucket, {key: bytes(archive.shard_bytes[last])})
    with pytest.raises(UserError, match=rf"{name} is damaged: it has not the manifest's checksum; copy it again"):
        Reader(archive).read(np.array([archive.num_samples - 1]))
    assert not archive.shard_path(last).exists()
    put(bucket, {key: (archive_path / "shards" / name).read_bytes()})


def _train(world: None, values: dict) -> None:
    pretrain(config_from_values(values))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(max(run.glob("checkpoints/*.pt")), weights_only=False)["model"]


@pytest.mark.slow
def test_two_ranks_share_a_cache_and_train_as_from_a_folder(bucket, url, archive_path, make_config, tmp_path):
    budget = 5 * largest(archive_path)
    cached = {"data.path": url, "data.cache": str(tmp_path / "cache"), "data.cache_gib": budget / 2**30}
    for name, changes in {"local": {}, "remote": cached}.items():
        values = config_to_values(make_config(**{"output": str(tmp_path / name)} | changes))
        run_on_ranks(_train, 2, values, join=False)
    local, remote = weights_of(tmp_path / "local"), weights_of(tmp_path / "remote")
    assert all(torch.equal(value, remote[key]) for key, value in local.items())
    assert 0 < held(tmp_path / "cache") <= budget
    checkpoint = max((tmp_path / "remote").glob("checkpoints/*.pt"))
    # by the cache of its run, and without
    scores = [evaluate(checkpoint, data).results for data in (url, archive_path)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.cache": ""}, "set data.cache to a folder on a local disk"),
        ({"data.path": "s3://hospital/none"}, r"s3://hospital/none/manifest.json does not exist"),
        ({"data.path": "s3://hospital/other"}, r"other/manifest.json is not an archive of ours"),
        ({"data.cache_gib": 1e-9}, "of which not two fit in a cache of 0.00 GiB: raise data.cache_gib"),
        ({"data.cache_gib": 5e-5, "data.window": 6}, "data.cache_gib = 5e-05: two windows of 6 shards take 0.00 GiB"),
        ({"data.cache_gib": 0.0}, "data.cache_gib = 0.0"),
    ],
)
def test_what_cannot_be_opened_is_said_in_a_line(changes, message, bucket, url, make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(bucket, {"other/manifest.json": json.dumps({"format": "other"}).encode()})
    with pytest.raises(UserError, match=message):
        open_archive(make_config(**{"data.path": url, "data.cache": "cache"} | changes).data)
