"""What cannot be read is no bad image; and no file, whatever it does to the worker that decodes it, costs another."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from fastfgssl.archive.building import parts
from fastfgssl.archive.building.worker import Watch
from fastfgssl.archive.images import decoded
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.outcome import Unusable
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.archive.sources.base import Entry, nothing
from fastfgssl.archive.sources.folder import FolderSource
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.images import encode, gradient, inputs_of, write_files


def pictures(count: int) -> dict[str, bytes]:
    return {f"{i:04d}.png": encode(gradient(16 + i % 90, 16 + i // 90), "PNG") for i in range(count)}


def test_an_outage_ends_the_run_and_replaces_nothing(tmp_path):
    """990 of 1,000 files vanish while it runs."""
    source = write_files(tmp_path / "source", pictures(1000))
    out = tmp_path / "archive"
    options = {"sources": [source], "out": out, "workers": 2}
    prepare(PrepareOptions(sources=[write_files(tmp_path / "old", pictures(5))], out=out, workers=1))
    before = (out / "manifest.json").read_bytes()
    away = tmp_path / "away"

    def unmount(progress: object) -> None:
        if not away.exists():
            away.mkdir()
            for path in sorted(source.iterdir())[10:]:
                path.rename(away / path.name)

    with pytest.raises(UserError) as error:
        prepare(PrepareOptions(overwrite=True, **options), unmount)
    assert "files cannot be read" in str(error.value)
    assert "No such file or directory" in str(error.value)
    assert "the same command goes on" in str(error.value)
    assert (out / "manifest.json").read_bytes() == before

    for path in away.iterdir():  # it is back
        path.rename(source / path.name)
    assert prepare(PrepareOptions(overwrite=True, **options)).samples == 1000
    assert verify(Archive.open(out)) == []


def test_few_files_that_cannot_be_read_are_forgiven_and_may_be_taken_again(tmp_path):
    source = write_files(tmp_path / "source", pictures(5))
    (source / "lost.png").symlink_to(source / "nowhere")
    options = {"sources": [source], "out": tmp_path / "archive", "workers": 1}
    summary = prepare(PrepareOptions(**options))
    assert (summary.samples, summary.unreadable) == (5, 1)
    assert summary.quarantined == {"cannot be read": 1}
    (source / "nowhere").write_bytes(encode(gradient(99, 99), "PNG"))
    assert prepare(PrepareOptions(**options)).added == 0
    assert prepare(PrepareOptions(retry=True, **options)).added == 1
    (source / "lost.png").unlink()
    for name in ("lost2.png", "lost3.png"):
        (source / name).symlink_to(source / "away")
    with pytest.raises(UserError, match="2 of the first 2 of 2 files cannot be read"):
        prepare(PrepareOptions(**options))
    assert prepare(PrepareOptions(max_unreadable=1, **options)).unreadable == 2


class Flaky(FolderSource):
    """A server that answers every file's first two calls with an error."""

    def read(
        self, entries: Sequence[Entry], alive: Callable[[], object] = nothing
    ) -> Iterator[bytes | OSError | Unusable]:
        for entry, data in zip(entries, super().read(entries), strict=True):
            calls = self.root.parent / f"{entry.name.decode()}.calls"
            calls.write_text(f"{calls.read_text() if calls.exists() else ''}.")
            yield data if len(calls.read_text()) > 2 else OSError(5, "Input/output error")


def make_part(folder: Path, source: FolderSource, options: parts.PartOptions, **others: object) -> dict[str, dict]:
    """The rows of a part of all files, made in this process; by name."""
    (folder / "parts").mkdir()
    entries = list(source.entries())
    chunk = parts.Chunk("digest", 0, np.arange(len(entries)), entries, **others)
    maker = parts.PartMaker(folder / "parts", [source], options)
    maker._decoder = decoded.TrainingDecoder()  # and so this process gets no limit of memory
    maker(chunk, Watch([0.0] * 3))
    (made,) = (folder / "parts").iterdir()
    return {entries[row["entry"]].name.decode(): row for row in parts.read_part(made).to_pylist()}


def test_what_cannot_be_read_at_once_is_read_later(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PAUSES", (0.0, 0.0, 0.0))
    source = Flaky(write_files(tmp_path / "source", pictures(3)))
    rows = make_part(tmp_path, source, parts.PartOptions())
    assert {row["outcome"] for row in rows.values()} == {"image"}
    assert list(rows) == ["0000.png", "0001.png", "0002.png"]


def test_a_part_that_misses_files_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PAUSES", ())
    source = Flaky(write_files(tmp_path / "source", pictures(3)))
    rows = make_part(tmp_path, source, parts.PartOptions())
    assert {(row["outcome"], row["reason"]) for row in rows.values()} == {
        ("unreadable", "cannot be read: Input/output error")
    }
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["digest.unreadable"]


def test_large_files_are_not_read_and_guilty_ones_not_again(tmp_path):
    source = FolderSource(write_files(tmp_path / "source", pictures(4)))
    with (source.root / "0001.png").open("r+b") as file:
        file.truncate(1 << 33)  # a hole
    blamed = {2: ("quarantined", "killed its worker (SIGSEGV)")}
    rows = make_part(tmp_path, source, parts.PartOptions(max_bytes=1 << 20), blamed=blamed)
    assert rows["0001.png"]["reason"] == "too large: 8589934592 bytes, --max-bytes is 1048576"
    assert rows["0002.png"]["reason"] == "killed its worker (SIGSEGV)"
    assert rows["0000.png"]["outcome"] == rows["0003.png"]["outcome"] == "image"


def test_a_file_that_does_not_fit_into_memory_costs_itself_alone(tmp_path):
    source = write_files(tmp_path / "source", pictures(4))
    with (source / "0001.png").open("r+b") as file:
        file.truncate(700 << 20)  # a hole
    out = tmp_path / "archive"
    summary = prepare(PrepareOptions(sources=[source], out=out, workers=1, max_memory=300))
    assert summary.samples == 3
    assert summary.quarantined == {"needs more memory than --max-memory allows": 1}


ACTS = {
    "crash.png": "crashes",
    "hang.png": "hangs",
    "eats.png": "eats memory",
    "defect.png": "raises what nobody expects",
}


def misbehave(data: bytes, *rest: object, **options: object) -> object:
    """Stands in for a decoder; files begin with what they do to it."""
    if data == b"crashes":
        ctypes.string_at(0)
    elif data == b"hangs":
        time.sleep(1000)
    elif data == b"eats memory":
        return np.ones(1 << 32, np.uint8)
    elif data == b"raises what nobody expects":
        raise KeyError("nothing")
    return PREPARE(data, *rest, **options)


PREPARE = decoded.prepare_file


class Misbehaving(parts.PartMaker):
    """Makes parts with a decoder that misbehaves, in a worker as well."""

    def __call__(self, chunk: parts.Chunk, watch: Watch) -> parts.Part:
        decoded.prepare_file = misbehave
        return super().__call__(chunk, watch)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_file_does_to_its_worker_costs_that_file_alone(tmp_path, monkeypatch, workers):
    files = pictures(300) | {f"{i}{name}": text.encode() for i in "05" for name, text in ACTS.items()}
    source = write_files(tmp_path / "source", files)
    options = PrepareOptions(
        sources=[source], out=tmp_path / "archive", workers=workers, max_seconds=2, max_memory=1024
    )
    monkeypatch.setattr("fastfgssl.archive.prepare.PartMaker", Misbehaving)
    summary = prepare(options)
    assert summary.samples == 300
    assert summary.quarantined == {
        "killed its worker (SIGSEGV)": 2,
        "took more than 2 s": 2,
        "needs more memory than --max-memory allows": 2,
        "a decoder failed": 2,
    }
    reasons = {Path(row["path"]).name: row["reason"] for row in inputs_of(options) if row["reason"]}
    assert reasons["0defect.png"] == "a decoder failed: KeyError: 'nothing'"
    assert len(reasons) == 8
    assert verify(Archive.open(tmp_path / "archive")) == []
