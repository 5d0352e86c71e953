"""From containers comes the archive that comes from a folder, also after kills, and each member is accounted for."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from fastfgssl.archive.building.accounting import read_accounting
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.archive.verification import verify
from helpers.command import Command, run_command
from helpers.containers import container_of, tar_of, write
from helpers.images import encode, fixed_key, gradient, inputs_of, write_files
from helpers.paths import TOOLS

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tar.zst")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    files = {f"{i % 3}/{i:03d}.png": encode(gradient(40 + i % 300, 30), "PNG") for i in range(400)}
    files |= {"0/notes.txt": b"text", "1/damaged.png": b"no image"}
    return dict(sorted(files.items()))


def options(source: Path, out: Path, **others: object) -> PrepareOptions:
    key = fixed_key(out.parent / "key")
    return PrepareOptions(sources=[source], out=out, key=key, **{"shard_size": 0.05, "workers": 2} | others)


def shards(archive: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in archive.glob("shards/*")}


def test_shards_are_the_same_from_a_folder_and_from_containers(files, tmp_path):
    prepare(options(write_files(tmp_path / "folder", files), tmp_path / "archive"))
    expected = shards(tmp_path / "archive")
    for suffix in SUFFIXES:
        source = write(tmp_path / f"of{suffix}" / f"scans{suffix}", container_of(suffix, files))
        made = options(source, tmp_path / f"archive{suffix}")
        summary = prepare(made)
        assert shards(made.out) == expected
        assert summary.other_files == {".txt": 1}
        assert verify(Archive.open(made.out)) == []
        paths = {row["path"]: row["outcome"] for row in inputs_of(made)}
        assert len(paths) == len(files)
        assert paths[f"{source}!/1/damaged.png"] == "quarantined"
    assert prepare(made).added == 0
    assert prepare(made).known == 401


def test_killed_over_a_container_it_goes_on(files, tmp_path):
    source = write(tmp_path / "scans.tar.gz", container_of(".tar.gz", files))
    prepare(options(source, tmp_path / "whole" / "archive"))
    out, key = tmp_path / "archive", fixed_key(tmp_path / "key")
    words = (source, "--out", out, "--shard-size", 0.05, "--key", key, "--workers", 2)
    rng, killed = random.Random(0), 0
    for _ in range(6):
        run = Command(TOOL, *words)
        try:
            run.wait(0.3 * killed + 0.2 * rng.random())  # the first while it starts, on any machine
        except subprocess.TimeoutExpired:
            run.kill()
            killed += 1
    assert killed
    assert run_command(TOOL, *words).returncode == 0
    assert (out / "samples.arrow").read_bytes() == (tmp_path / "whole" / "archive" / "samples.arrow").read_bytes()
    assert shards(out) == shards(tmp_path / "whole" / "archive")


TOOL = TOOLS / "prepare.py"


def test_damage_is_accounted_for_and_named_nowhere_in_the_archive(files, tmp_path):
    few = dict(list(files.items())[:9])
    write_files(tmp_path / "source", few)
    write(tmp_path / "source" / "Mueller^Hans.tar.gz", container_of(".tar.gz", files)[:5000])
    made = options(tmp_path / "source", tmp_path / "archive", workers=1)
    summary = prepare(made)
    assert summary.quarantined["damaged container"] == 1
    assert summary.examples["damaged container"].endswith("Mueller^Hans.tar.gz")
    table = read_accounting(made.out).to_pylist()
    (row,) = (row for row in table if row["reason"] == "damaged container")
    assert (row["outcome"], row["bytes"]) == ("quarantined", 0)
    assert verify(Archive.open(made.out)) == []
    assert not any(b"Mueller" in path.read_bytes() for path in made.out.rglob("*") if path.is_file())
    write(tmp_path / "source" / "Mueller^Hans.tar.gz", container_of(".tar.gz", files))  # it is copied again
    assert prepare(options(tmp_path / "source", made.out, retry=True)).added > 200


def test_shards_of_others_and_of_ours_are_sources(files, tmp_path):
    """As the webdataset package writes them: labels and texts beside the images."""
    pictures = [data for name, data in files.items() if name.endswith(".png")][:60]
    for number in range(2):
        members = {}
        for key, data in enumerate(pictures[number * 30 :][:30]):
            members |= {f"{key:06d}.cls": b"1", f"{key:06d}.json": b"{}", f"{key:06d}.png": data}
        write(tmp_path / "shards" / f"train-{number}.tar", tar_of(members))
    made = options(tmp_path / "shards", tmp_path / "archive", workers=1)
    summary = prepare(made)
    assert summary.other_files == {".cls": 60, ".json": 60}
    assert summary.samples + summary.duplicates == 60
    again = options(made.out, tmp_path / "again", workers=1)
    summary = prepare(again)
    assert shards(again.out) == shards(made.out)
    assert not summary.quarantined


def test_folders_in_a_container_are_classes(files, tmp_path):
    source = write(tmp_path / "data.zip", container_of(".zip", files))
    summary = prepare(options(source, tmp_path / "archive", labels_from="folders", workers=1))
    assert summary.classes == 3
    (tmp_path / "labels.csv").write_text("image,label\n0/000.png,a\n001.png,b\ndata.zip!/2/002.png,c\n")
    summary = prepare(options(source, tmp_path / "second", labels=tmp_path / "labels.csv", workers=1))
    assert (summary.labelled, summary.unmatched) == (3, [])
