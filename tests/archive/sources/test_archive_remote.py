"""Buckets over real HTTP: what is in them, servers that fail for a while, and those that are gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.opening import open_sources, path_or_url
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.bucket import put
from helpers.containers import container_of, contents_of
from helpers.images import encode, fixed_key, gradient, inputs_of, write_files

pytest.importorskip("s3fs")

FILES = {f"{i % 3}/{i:03d}.png": encode(gradient(40 + i, 30), "PNG") for i in range(40)}


def contents(url: str) -> dict[str, bytes | str]:
    (source,) = open_sources([url], options=SourceOptions(depth=3))
    return contents_of(source)


def test_objects_below_a_prefix_and_containers_among_them(bucket):
    files = {"a-b/1.png": b"1", "a/2.png": b"2", "a.png": b"3", "a/ä?*[1].png": b"4", "a/empty.png": b""}
    put(bucket, {f"scans/{name}": data for name, data in files.items()})
    put(bucket, {"other/5.png": b"5", "scans/": b"", "scans/a//odd.png": b"6", "scans/notes.txt": b"7"})
    put(bucket, {f"scans/z{suffix}": container_of(suffix, FILES) for suffix in (".zip", ".tar.gz")})
    found = contents("s3://hospital/scans/")
    names = [
        f"z{suffix}!/{name}" for suffix in (".tar.gz", ".zip") for name in (FILES if "t" in suffix else sorted(FILES))
    ]
    ours = {name: data for name, data in found.items() if not name.startswith("z")}
    assert list(ours) == ["a-b/1.png", "a.png", "a/2.png", "a/empty.png", "a/ä?*[1].png", "notes.txt"]
    assert {name: ours[name] for name in files} == files
    assert [name for name in found if name.startswith("z")] == names
    assert all(found[name] == FILES[name.split("!/")[1]] for name in names)
    assert contents("s3://hospital/scans/a.png") == {"a.png": b"3"}
    assert list(contents("s3://hospital/scans/z.zip").values()) == [data for _, data in sorted(FILES.items())]


def test_the_archive_is_that_of_a_folder_though_the_server_fails_at_times(bucket, tmp_path):
    put(bucket, {f"scans/{name}": data for name, data in FILES.items()})
    key = fixed_key(tmp_path / "key")
    options = {"workers": 1, "key": key, "shard_size": 0.01}
    prepare(PrepareOptions(sources=[write_files(tmp_path / "scans", FILES)], out=tmp_path / "local", **options))
    bucket.failures = 3
    remote = PrepareOptions(sources=["s3://hospital/scans"], out=tmp_path / "remote", **options)
    summary = prepare(remote)
    assert bucket.failures == 0
    assert summary.samples == 40
    for path in (tmp_path / "local").rglob("*"):  # ids too: they are of the last part of the path, and below it
        if path.is_file():
            assert (tmp_path / "remote" / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes()
    assert verify(Archive.open(remote.out)) == []
    assert {row["path"] for row in inputs_of(remote)} == {f"s3://hospital/scans/{name}" for name in FILES}
    assert prepare(remote).added == 0


def test_a_server_that_goes_away_ends_the_run_and_what_is_done_is_kept(bucket, tmp_path):
    put(bucket, {f"scans/{name}": data for name, data in FILES.items()})
    bucket.match, bucket.failures = ".png", 1 << 30  # lists, and gives nothing
    options = PrepareOptions(sources=["s3://hospital/scans"], out=tmp_path / "archive", workers=1)
    with pytest.raises(UserError, match=r"files cannot be read, s3://hospital/scans/.*the same command goes"):
        prepare(options)
    assert not options.out.exists()
    bucket.failures = 0
    assert prepare(options).samples == 40


def test_a_server_that_is_not_there(bucket, tmp_path, monkeypatch):
    put(bucket, {"scans/1.png": b"1"})
    with pytest.raises(UserError, match="the source s3://hospital/none does not exist"):
        contents("s3://hospital/none")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot read the source s3://hospital/scans: .*127.0.0.1:9"):
        contents("s3://hospital/scans")


def test_urls_of_other_protocols(tmp_path):
    import fsspec

    assert path_or_url(f"file://{tmp_path}/a b") == tmp_path / "a b"
    assert path_or_url("a/b") == Path("a/b")
    fs = fsspec.filesystem("memory")
    fs.pipe({"/scans/b/1.png": b"one", "/scans/a.png": b"a"})
    assert contents("memory://scans") == {"a.png": b"a", "b/1.png": b"one"}
    scan = bytes(128) + b"DICM"
    fs.pipe({"/disc/DICOM/A0001": scan, "/disc/DICOM/B.Doe": scan, "/disc/LIESMICH": b"text" * 99, "/disc/Z": b""})
    found = {"DICOM/A0001": scan, "DICOM/B.Doe": scan, "LIESMICH": "skipped: no suffix", "Z": "skipped: no suffix"}
    assert contents("memory://disc") == found
    assert contents("memory://disc/DICOM/A0001") == {"A0001": scan}
    for url, why in {
        "nonsense://x": "nonsense://x cannot be read: Protocol not known: nonsense",
        "ftp://127.0.0.1/x": "ftp://127.0.0.1/x cannot be read: of servers, those of https and DICOMweb are, and obj",
        "hdfs://x/y": "hdfs://x/y cannot be read: of servers, those",
        "s3://": "the source s3:// names nothing behind its protocol",
        "https://127.0.0.1:9/x.zip": "the source https://127.0.0.1:9/x.zip does not exist or cannot be reached",
    }.items():
        with pytest.raises(UserError, match=f"^{why}") as told:
            contents(url)
        assert "\n" not in str(told.value)
