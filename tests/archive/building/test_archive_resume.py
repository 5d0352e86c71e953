"""Killed at any moment, done in shares, or grown: an archive is the same, and nothing is done twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from fastfgssl.archive.building import base
from fastfgssl.archive.building.accounting import read_accounting
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, Summary, prepare
from fastfgssl.archive.report.table import report_rows
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.command import Command, run_command
from helpers.images import encode, fixed_key, gradient, inputs_of, names_of, write_files
from helpers.paths import TOOLS
from helpers.repeated import contents, write_repeated

TOOL = TOOLS / "prepare.py"
KILLS = 20


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_repeated(tmp_path_factory.mktemp("resume") / "source")


def options(source: Path, out: Path, **others: object) -> PrepareOptions:
    key = fixed_key(out.parent / "key")
    return PrepareOptions(sources=[source], out=out, key=key, **{"shard_size": 0.05, "workers": 2} | others)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "archive"
    prepare(options(source, out))
    return out


def test_killed_at_random_moments_it_ends_in_the_same_bytes(source, whole, tmp_path):
    key = fixed_key(tmp_path / "key")
    words = (source, "--out", tmp_path / "archive", "--shard-size", 0.05, "--key", key, "--workers", 2)
    rng = random.Random(0)
    seconds, killed = 0.3, 0
    for _ in range(KILLS):
        run = Command(TOOL, *words)
        try:
            run.wait(rng.uniform(0.1, seconds))
        except subprocess.TimeoutExpired:
            run.kill()
            killed += 1
            seconds += 0.1  # so that some come late
            continue
        assert run.returncode == 0
        shutil.rmtree(tmp_path / "archive")  # it was complete: begin anew
        seconds = 0.3
    assert killed >= KILLS // 2
    assert run_command(TOOL, *words).returncode == 0
    assert contents(tmp_path / "archive") == contents(whole)
    private = [f"archive.{name}" for name in ("inputs.csv", "report.html", "left_out.arrow")]
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "key", *private}
    for name in private:
        assert (tmp_path / name).read_bytes() == whole.with_name(name).read_bytes()


def test_what_is_done_is_not_done_again(source, whole, tmp_path, monkeypatch):
    out = tmp_path / "archive"

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as before:
        before.setattr("fastfgssl.archive.prepare.assemble", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(options(source, out))
    with monkeypatch.context() as after:
        # a maker that could do nothing
        after.setattr("fastfgssl.archive.building.parts.PartMaker.__init__", lambda self, *rest: None)
        prepare(options(source, out))
    assert contents(out) == contents(whole)


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(source, whole, tmp_path, monkeypatch):
    out = tmp_path / "archive"
    asked = {"found": 600, "samples": 0, "known": 0}
    for part in (None, "1/2"):
        summary = prepare(options(source, out, dry_run=True, part=part))
        assert {name: getattr(summary, name) for name in asked} == asked
        assert [path.name for path in tmp_path.iterdir()] == ["key"]

    # hours of work may lie there
    with monkeypatch.context() as before:
        before.setattr("fastfgssl.archive.prepare.assemble", lambda *arguments: None)
        prepare(options(source, out))
    stopped = sorted((tmp_path / "archive.partial/parts").iterdir())
    assert stopped
    prepare(options(source, out, dry_run=True))
    assert sorted((tmp_path / "archive.partial/parts").iterdir()) == stopped
    prepare(options(source, out))
    before_it = contents(out), (tmp_path / "archive.inputs.csv").read_bytes()
    assert before_it[0] == contents(whole)

    summary = prepare(options(source, out, dry_run=True, overwrite=True))
    assert (summary.found, summary.known) == (600, 0)
    summary = prepare(options(source, out, dry_run=True))
    assert (summary.found, summary.known) == (600, 600)
    summary = prepare(options(source, out, dry_run=True, retry=True))
    assert (summary.found, summary.known) == (600, 590)
    assert (contents(out), (tmp_path / "archive.inputs.csv").read_bytes()) == before_it
    assert not (tmp_path / "archive.partial").exists()


def test_a_worker_that_somebody_kills_costs_nothing(source, whole, tmp_path):
    out, kills = tmp_path / "archive", 0

    def kill(progress: object) -> None:
        nonlocal kills
        for worker in multiprocessing.active_children():
            if kills < 3:
                os.kill(worker.pid, signal.SIGKILL)
                kills += 1
                return

    prepare(options(source, out), kill)
    assert kills
    assert contents(out) == contents(whole)


def test_shares_of_several_machines_are_one_archive(source, whole, tmp_path):
    out = tmp_path / "archive"
    runs = [Command(TOOL, source, "--out", out, "--part", f"{i}/3", "--workers", 1) for i in (1, 2, 3)]
    for run in runs:
        output, _ = run.communicate()
        assert run.returncode == 0
        assert "600 images, 600 of them new" in output
    assert not out.exists()
    shutil.rmtree(tmp_path / "archive.private")
    begun = time.monotonic()
    prepare(options(source, out))
    assert time.monotonic() - begun < 20
    assert contents(out) == contents(whole)


def grown(tmp_path: Path, files: dict[str, bytes], **others: object) -> Summary:
    source = write_files(tmp_path / "source", files)
    return prepare(options(source, tmp_path / "archive", **others))


def test_what_is_new_is_added_and_old_shards_are_left(tmp_path):
    pictures = {f"{i}.png": encode(gradient(20 + i, 30), "PNG") for i in range(30)}
    damaged = {"damaged.png": pictures["3.png"][:-30]}
    grown(tmp_path, pictures | damaged, shard_size=0.01)
    out = tmp_path / "archive"
    before, old = contents(out), Archive.open(out)
    shards = {name: out.joinpath(name).stat().st_ino for name in before if name.startswith("shards")}

    summary = grown(tmp_path, {}, shard_size=0.01)
    assert (summary.added, summary.known, summary.samples) == (0, 31, 30)
    assert contents(out) == before

    new = {f"a{i}.png": encode(gradient(70 + i, 30), "PNG") for i in range(20)} | {"again.png": pictures["7.png"]}
    summary = grown(tmp_path, new | {"notes.txt": b""}, shard_size=0.01)
    assert (summary.added, summary.known, summary.samples, summary.duplicates) == (20, 31, 50, 1)
    assert not summary.quarantined  # what was, is not taken again
    archive = Archive.open(out)
    assert verify(archive) == []
    for name, inode in shards.items():
        assert out.joinpath(name).stat().st_ino == inode
    kept = old.columns(np.arange(30), ["id", "offset"])
    assert [column.tolist() for column in archive.columns(np.arange(30), ["id", "offset"]).values()] == [
        column.tolist() for column in kept.values()
    ]
    rows = inputs_of(options(tmp_path / "source", out))
    assert len(rows) == len(read_accounting(out)) == 31 + 20 + 1 + 1
    (again,) = (row for row in read_accounting(out).to_pylist() if row["outcome"] == "duplicate")
    names = names_of(options(tmp_path / "source", out))
    assert names[again["id"]].endswith("again.png")
    assert names[archive.columns(np.array([again["sample"]]), ["id"])["id"][0]].endswith("/7.png")

    (tmp_path / "source/5.png").write_bytes(encode(gradient(99, 99), "PNG"))
    assert grown(tmp_path, {}).grown == [f"{tmp_path}/source/5.png"]

    write_files(tmp_path / "source", {"damaged.png": encode(gradient(300, 20), "PNG")})
    summary = grown(tmp_path, {}, shard_size=0.01, retry=True)
    assert (summary.added, summary.samples) == (1, 51)
    assert Archive.open(out).quarantined == 0
    assert verify(Archive.open(out)) == []
    outcomes = [row["outcome"] for row in inputs_of(options(tmp_path / "source", out))]
    assert (len(outcomes), outcomes.count("quarantined")) == (53, 0)


def test_another_folder_of_the_same_name_is_told(tmp_path):
    for i, day in enumerate(("monday", "tuesday")):
        files = {f"{number}.png": encode(gradient(20 + number, 30 + i), "PNG") for number in range(3)}
        write_files(tmp_path / day / "export", files)
    out = tmp_path / "archive"
    assert prepare(options(tmp_path / "monday/export", out)).moved == []
    assert prepare(options(tmp_path / "monday/export", out)).moved == []
    summary = prepare(options(tmp_path / "tuesday/export", out))
    assert (summary.added, summary.known) == (0, 3)
    assert summary.moved == [f"{tmp_path}/tuesday/export/0.png, then {tmp_path}/monday/export/0.png"]
    table = dict(report_rows(options(tmp_path / "tuesday/export", out, labels=tmp_path / "l.csv"), summary))
    assert table["elsewhere"].startswith("known images lay elsewhere when added: if they are others, rename")
    assert table["labels"] == "those of the 3 known images stay as they were; --overwrite makes all anew"


def test_labels_of_what_is_added(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("image,label,patient\n0,mole,A\n1,scar,B\n")
    grown(tmp_path, {f"{i}.png": encode(gradient(20 + i, 30), "PNG") for i in range(3)}, labels=table)
    first = Archive.open(tmp_path / "archive").columns(np.arange(2), ["group"])["group"]
    table.write_text("image,label,patient\n0,mole,A\n1,scar,B\nx,freckle,A\ny,scar,C\n")
    new = {f"{name}.png": encode(gradient(20 + i, 40), "PNG") for i, name in enumerate("xy")}
    grown(tmp_path, new, labels=table)
    archive = Archive.open(tmp_path / "archive")
    assert archive.classes == ("freckle", "mole", "scar")
    rows = archive.columns(np.arange(5), ["label", "group"])
    assert rows["label"].tolist() == [1, 2, -1, 0, 2]
    assert rows["group"][3] == rows["group"][0] == first[0]  # the same patient, in another run
    assert (archive.labelled, archive.groups) == (4, 3)


def test_an_archive_of_the_version_before_is_not_added_to(tmp_path):
    grown(tmp_path, {"1.png": encode(gradient(20, 30), "PNG")})
    manifest = tmp_path / "archive/manifest.json"
    manifest.write_text(manifest.read_text().replace('"accounting"', '"other"').replace('"version": 2', '"version": 1'))
    with pytest.raises(UserError, match="is of an earlier version, which names its images by their paths: --overwrite"):
        grown(tmp_path, {})
    assert grown(tmp_path, {}, overwrite=True).samples == 1


def test_an_archive_goes_on_with_the_hash_of_pixels_that_it_began_with(tmp_path, monkeypatch):
    pictures = {f"{i}.png": encode(gradient(20 + i, 30), "PNG") for i in range(3)}
    with monkeypatch.context() as earlier:
        earlier.setattr(base, "PIXEL_HASH", "sha256")
        grown(tmp_path, pictures)
    manifest = tmp_path / "archive/manifest.json"
    manifest.write_text(manifest.read_text().replace('  "pixel_hash": "sha256",\n', ""))
    assert "pixel_hash" not in manifest.read_text()
    summary = grown(tmp_path, {"again.png": pictures["1.png"], "new.png": encode(gradient(50, 50), "PNG")})
    assert (summary.added, summary.duplicates) == (1, 1)
    assert '"pixel_hash": "sha256"' in manifest.read_text()

    manifest.write_text(manifest.read_text().replace('"sha256",\n  "quarantined', '"md9",\n  "quarantined'))
    with pytest.raises(UserError, match="compares pixels by md9, which this program does not know: update it"):
        grown(tmp_path, {})
