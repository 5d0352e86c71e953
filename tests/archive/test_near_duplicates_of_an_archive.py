"""`--near-duplicates` where an archive grows: new images are compared with what it holds, as in one run over all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastfgssl.archive.building.accounting import read_accounting
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.options import PrepareOptions
from fastfgssl.archive.prepare import prepare
from fastfgssl.archive.report.table import report_rows
from fastfgssl.archive.summary import Summary
from fastfgssl.archive.verification import verify
from helpers.images import encode, fixed_key, inputs_of, names_of, write_files


def blotches(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(40, 216, (14, 18, 3), np.uint8)
    return Image.fromarray(cells).resize((180, 140), Image.Resampling.BICUBIC)


def deep(seed: int) -> Image.Image:
    return Image.fromarray(np.asarray(blotches(seed).convert("L")).astype(np.uint16) * 14 + 300)


def smaller(picture: Image.Image) -> Image.Image:
    return picture.resize((90, 70), Image.Resampling.BICUBIC)


def later_files() -> dict[str, bytes]:
    """A copy of each of `first_files`, two of one that the archive has not, and one of nobody; last in the listing."""
    return {
        "new/10 of 0.jpg": encode(blotches(0), "JPEG", quality=60),
        "new/11 of 1.png": encode(ImageOps.mirror(smaller(blotches(1))), "PNG"),
        "new/12 of 2.png": encode(smaller(blotches(2)).convert("L"), "PNG"),
        "new/13 of 3.png": encode(blotches(3), "PNG"),
        "new/14 the same as 0.png": encode(blotches(0), "PNG", compress_level=1),
        "new/15.png": encode(blotches(15), "PNG"),
        "new/16 of 15.png": encode(smaller(blotches(15)), "PNG"),
        "new/17.png": encode(blotches(17), "PNG"),
        "new/18 of 0 too.png": encode(smaller(blotches(0)), "PNG"),
    }


def first_files() -> dict[str, bytes]:
    return {
        "0.png": encode(blotches(0), "PNG"),
        "1.jpg": encode(blotches(1), "JPEG", quality=90),
        "2.tif": encode(blotches(2), "TIFF"),
        "3.png": encode(deep(3), "PNG"),
        "4.png": encode(blotches(4), "PNG"),
    }


def asked(out: Path, source: Path, **options: object) -> PrepareOptions:
    return PrepareOptions(sources=[source], out=out, key=fixed_key(out.parent / "key"), workers=1, **options)


def made(options: PrepareOptions) -> tuple[dict[str, tuple[object, ...]], set[frozenset[str]], Summary]:
    """What became of each file, with its group and what it repeats; the pairs that were told; the summary."""
    summary = prepare(options)
    archive, names = Archive.open(options.out), names_of(options)
    assert verify(archive) == []
    ids = archive.columns(np.arange(archive.num_samples), ("id",))["id"]
    groups = np.full(len(ids), -1)
    if archive.has_column("group"):
        groups = archive.columns(np.arange(len(ids)), ("group",))["group"]
    found = {}
    for row in read_accounting(options.out).to_pylist():
        sample = row["sample"]
        found[Path(names[row["id"]]).name] = row["outcome"], Path(names[ids[sample]]).name, int(groups[sample])
    pairs = {frozenset(Path(path).name for path in pair.split(" and ")) for pair in summary.near_duplicates}
    return found, pairs, summary


@pytest.mark.parametrize("how", ["report", "group", "drop"])
def test_an_archive_that_grows_is_what_one_run_makes_of_all(how, tmp_path):
    """Whether its thumbnails were kept, or have to be made of its shards, as of one that was made without them."""
    write_files(tmp_path / "a" / "source", first_files() | later_files())
    expected, pairs, summary = made(asked(tmp_path / "a" / "archive", tmp_path / "a" / "source", near_duplicates=how))
    assert frozenset({"0.png", "10 of 0.jpg"}) in pairs
    assert {found for found in expected.values() if found[0] != "written"}
    for place, before in (("kept", how), ("made of shards", None)):
        source, options = tmp_path / place / "source", asked(tmp_path / place / "archive", tmp_path / place / "source")
        write_files(source, first_files())
        prepare(replace(options, near_duplicates=before))
        assert options.thumbnails_file.exists() == (before is not None)
        shards = {path.name: path.read_bytes() for path in options.out.glob("shards/*")}
        write_files(source, later_files())
        found, told, grown = made(replace(options, near_duplicates=how))
        assert found == expected
        assert told == pairs
        assert (grown.samples, grown.apart, grown.unlike) == (summary.samples, 0, 0)
        assert all((options.out / "shards" / name).read_bytes() == data for name, data in shards.items())
    stored = np.load(options.thumbnails_file)
    assert len(stored) == summary.samples
    assert np.array_equal(
        np.sort(stored, order="pixels"), np.sort(np.load(tmp_path / "a" / "archive.thumbnails.npy"), order="pixels")
    )


def between(angle: float) -> bytes:
    """Of two pictures: like those of 25 degrees more and less, and not like those of 40."""
    one, other = (np.kron(np.random.default_rng(seed).normal(0, 30, (32, 32)), np.ones((4, 4))) for seed in (98, 99))
    picture = 128 + np.cos(np.radians(angle)) * one + np.sin(np.radians(angle)) * other
    return encode(Image.fromarray(picture.clip(0, 255).astype(np.uint8)), "PNG")


def test_a_new_member_of_an_old_images_group_goes_where_that_is(tmp_path):
    """To those of a patient, and of nobody, which get a group by it; what is like two patients is the first one's."""
    old = {f"{i}.png": encode(blotches(i), "PNG") for i in range(8)}
    source = write_files(tmp_path / "source", old | {"8.png": between(0), "9.png": between(40)})
    labels = write_files(tmp_path, {"t.csv": b"image,label,patient\n3.png,a,one\n8.png,a,two\n9.png,a,three\n"})
    options = asked(
        tmp_path / "archive",
        source,
        labels=labels / "t.csv",
        group_column="patient",
        split="0.5/0.5",
        near_duplicates="group",
        members="json",
    )
    prepare(options)
    before = columns(options)
    assert [name for name, (group, _) in before.items() if group != -1] == ["3.png", "8.png", "9.png"]
    shard = (options.out / "shards" / "shard-000000.tar").read_bytes()
    write_files(source, {f"again/{i}.jpg": encode(blotches(i), "JPEG") for i in range(4)} | {"z.png": between(20)})
    summary = prepare(options)
    after = columns(options)
    assert verify(Archive.open(options.out)) == []
    assert {name: after[name][1] for name in before} == {name: split for name, (_, split) in before.items()}
    assert [after[f"{i}.jpg"] for i in range(4)] == [after[f"{i}.png"] for i in range(4)]
    assert after["z.png"] == after["8.png"] == before["8.png"]
    assert [after[name] for name in ("3.png", "9.png", "4.png")] == [
        before[name] for name in ("3.png", "9.png", "4.png")
    ]
    assert len({after[f"{i}.png"][0] for i in range(4)} - {-1}) == 4
    assert {split for _, split in after.values()} == {"train", "test"}
    assert (options.out / "shards" / "shard-000000.tar").read_bytes() == shard
    told = dict(report_rows(options, summary))["nearly the same"]
    assert told.startswith("6 pairs, e.g. ")
    assert told.endswith("; 1 in different groups, which the archive had")


def columns(options: PrepareOptions) -> dict[str, tuple[int, str]]:
    """Group and split of each sample."""
    archive, names = Archive.open(options.out), names_of(options)
    rows = archive.columns(np.arange(archive.num_samples), ("id", "group", "split"))
    return {
        Path(names[id]).name: (int(group), split)
        for id, group, split in zip(rows["id"], rows["group"], rows["split"], strict=True)
    }


def test_a_source_that_lost_its_old_files_still_tells_their_names(tmp_path):
    """And samples that can no longer be decoded are like nothing, which is told."""
    source = write_files(tmp_path / "source", first_files())
    options = asked(tmp_path / "archive", source, near_duplicates="drop")
    prepare(options)
    for path in source.iterdir():
        path.unlink()
    write_files(source, {"new.png": encode(smaller(blotches(4)), "PNG")})
    summary = prepare(options)
    assert summary.near_duplicates == [f"{source}/4.png and {source}/new.png"]
    assert (summary.added, summary.duplicates) == (0, 1)
    (row,) = (row for row in inputs_of(options) if row["path"].endswith("new.png"))
    assert row["outcome"] == "duplicate"

    options.thumbnails_file.write_bytes(b"damaged")
    (shard,) = options.out.glob("shards/*.tar")
    data = bytearray(shard.read_bytes())
    at = data.index(b"IDAT", data.index(b"000000001")) + 40
    data[at : at + 400] = bytes(400)
    shard.write_bytes(data)
    write_files(source, {"newer.png": encode(smaller(blotches(0)), "PNG")})
    summary = prepare(options)
    assert summary.unlike == 1
    assert summary.near_duplicates == [f"{source}/0.png and {source}/newer.png"]
    assert "not compared" in dict(report_rows(options, summary))


def test_thumbnails_of_many_samples_are_made_by_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("fastfgssl.archive.building.tasks._FEW_BYTES", 0)
    options = asked(tmp_path / "archive", write_files(tmp_path / "source", first_files()))
    prepare(options)
    write_files(tmp_path / "source", later_files())
    stages = set()
    summary = prepare(replace(options, near_duplicates="report"), lambda progress: stages.add(progress.stage))
    assert stages == {"images", "thumbnails", "shards"}
    assert len(summary.near_duplicates) == 7
