"""From folders to an archive: the same bytes however many workers, nothing lost, nothing half done, no traceback."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastfgssl.archive.building.keys import Key
from fastfgssl.archive.images.strip_jpeg import strip_jpeg
from fastfgssl.archive.images.strip_png import strip_png
from fastfgssl.archive.labels.assignment import read_labels
from fastfgssl.archive.listing import find_images
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.command import run_command
from helpers.images import (
    DECODER,
    REAL_DATA,
    encode,
    fixed_key,
    gradient,
    gradient_16_bit,
    inputs_of,
    names_of,
    real_data,
    with_orientation,
    write_files,
)
from helpers.labels import by_name
from helpers.paths import TOOLS

TOOL = TOOLS / "prepare.py"


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """A folder with what real archives contain, and labels for some of it."""
    jpeg = encode(gradient(200, 150), "JPEG")
    files = {
        "a/plain.jpg": jpeg,
        "a/no image.txt": b"notes",
        "a/cmyk.jpg": encode(gradient().convert("CMYK"), "JPEG"),
        "a/name with spaces (1).JPEG": encode(gradient(70, 90), "JPEG"),
        "b/truncated.jpg": jpeg[: len(jpeg) // 2],
        "b/empty.png": b"",
        "b/pointer.png": b"version https://git-lfs.github.com/spec/v1\n",
        "b/markup [red].png": b"[bold]",
        "b/depth16.png": encode(gradient_16_bit(), "PNG"),
        "b/depth16.tif": encode(gradient_16_bit(80, 100), "TIFF"),
        "b/misread.tif": encode(gradient().convert("LA"), "TIFF"),
        "c/animated.webp": encode(gradient(), "WEBP", save_all=True, append_images=[gradient().rotate(90)]),
        **{f"exif/{i}.jpg": with_orientation(gradient(90, 60), i, "JPEG") for i in range(1, 9)},
        **{f"many/{i:02d}.png": encode(gradient(20 + i, 30), "PNG") for i in range(30)},
    }
    folder = write_files(tmp_path_factory.mktemp("generated"), files)
    (folder / "b/link.png").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "b/pipe.png")
    rows = [
        f"many/{i:02d}.png,{'mole' if i % 3 else 'freckle'},patient {i // 4},{'val' if i % 5 == 0 else 'fit'}\n"
        for i in range(30)
    ]
    rows += ["plain.jpg,mole,patient 0,fit\n", "truncated,mole,,\n", "gone.png,mole,,\n"]
    (folder / "labels.csv").write_text("image,label,patient_id,split\n" + "".join(rows))
    return folder


class Prepared:
    """Sources, and the archive that was made of them."""

    def __init__(self, sources: list[Path], out: Path, **options: object) -> None:
        self.options = PrepareOptions(sources=sources, out=out, key=fixed_key(out.parent / "key"), **options)
        self.summary = prepare(self.options)
        self.path = out
        self.inputs = inputs_of(self.options)
        self.found = find_images(sources).entries
        self.archive = Archive.open(out)
        self.columns = self.archive.columns(
            np.arange(self.archive.num_samples), ["id", "shard", "offset", "size", "width", "height"]
        )
        names = names_of(self.options)
        self.kept = [names[id] for id in self.columns["id"]]

    def data(self, sample: int) -> bytes:
        with self.archive.shard_path(self.columns["shard"][sample]).open("rb") as shard:
            shard.seek(self.columns["offset"][sample])
            return shard.read(self.columns["size"][sample])

    def filtered(self) -> list[str]:
        return [row["path"] for row in self.inputs if row["outcome"] == "filtered"]

    def quarantine(self) -> dict[str, str]:
        out = [row for row in self.inputs if row["outcome"] in ("quarantined", "unreadable")]
        return {row["path"]: row["reason"] for row in out}


@pytest.fixture(scope="module")
def plain(generated, tmp_path_factory) -> Prepared:
    return Prepared([generated], tmp_path_factory.mktemp("plain") / "archive", shard_size=0.02, workers=1)


@pytest.fixture(scope="module")
def labelled(generated, tmp_path_factory) -> Prepared:
    out = tmp_path_factory.mktemp("labelled") / "archive"
    return Prepared([generated], out, labels=generated / "labels.csv", short_side=40, workers=1)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Prepared:
    if REAL_DATA is None:
        pytest.skip("FASTFGSSL_TEST_DATA names no folder of real images")
    sources = [Path(REAL_DATA, name) for name in ("odd", "sixteen_bit", "dermoscopy")]
    return Prepared(sources, tmp_path_factory.mktemp("real") / "archive", duplicates="keep")


@pytest.fixture(scope="module", params=["plain", "labelled", "real"])
def any_prepared(request) -> Prepared:
    """What holds of one archive holds of all."""
    return request.getfixturevalue(request.param)


def test_every_image_is_in_the_archive_or_in_quarantine(any_prepared):
    found = [entry.path for entry in any_prepared.found]
    kept = any_prepared.kept
    quarantined, filtered = any_prepared.quarantine(), any_prepared.filtered()
    assert sorted([*kept, *quarantined, *filtered]) == sorted(found)
    assert kept == [path for path in found if path not in quarantined and path not in filtered]
    assert any_prepared.archive.quarantined == len(quarantined) == any_prepared.summary.quarantined.total()
    assert any_prepared.summary.samples == len(kept)
    assert all(reason and "\n" not in reason for reason in quarantined.values())


def test_bytes_are_the_files_own_unless_the_picture_changed(any_prepared):
    sources = {entry.path: entry for entry in any_prepared.found}
    changed = 0
    for sample, path in enumerate(any_prepared.kept):
        data = any_prepared.data(sample)
        source = sources[path].read()
        size = any_prepared.columns["width"][sample], any_prepared.columns["height"][sample]
        assert Image.open(io.BytesIO(data)).size == size
        strip = {b"\xff\xd8": strip_jpeg, b"\x89P": lambda source: strip_png(source, 10**8)}.get(source[:2])
        kept = strip is not None and data == strip(source).data
        changed += not kept
        if kept:
            assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == size
    assert any_prepared.summary.changed.total() >= changed
    assert bool(any_prepared.summary.changed) == bool(changed)


def test_every_sample_decodes_in_training(any_prepared):
    for sample in range(0, any_prepared.archive.num_samples, 1 + any_prepared.archive.num_samples // 100):
        picture = DECODER.decode(any_prepared.data(sample))
        assert picture.shape[:2] == (any_prepared.columns["height"][sample], any_prepared.columns["width"][sample])


def test_verification_finds_nothing_wrong(any_prepared):
    assert verify(any_prepared.archive) == []


def test_what_was_done_is_counted(plain, generated):
    assert plain.summary.changed == {"turned upright": 7, "TIFF was encoded anew": 2, "WEBP was encoded anew": 1}
    assert plain.summary.notes == {"only the first of several pages or frames is used": 1}
    assert plain.summary.other_files == {".txt": 1, ".csv": 1, "not a regular file": 1}
    truncated = plain.quarantine().pop(f"{generated}/b/truncated.jpg")
    assert truncated.startswith("damaged or unsupported JPEG: its end is missing")
    reasons = {
        "b/empty.png": "empty file",
        "b/link.png": "cannot be read: No such file or directory",
        "b/markup [red].png": "not an image of a known format: it begins with b'[bold]'",
        "b/pointer.png": "not the image but a Git LFS pointer to it: run `git lfs pull`",
        "b/truncated.jpg": truncated,
    }
    assert plain.quarantine() == {f"{generated}/{name}": reason for name, reason in reasons.items()}
    assert plain.summary.unreadable == 1
    assert plain.summary.examples["empty file"] == f"{generated}/b/empty.png"
    assert plain.archive.bit_depth == {8: 43, 16: 2}
    assert len(plain.archive.shard_sizes) > 1


def test_short_side_of_every_image(labelled):
    assert labelled.archive.short_side == 40
    assert np.minimum(labelled.columns["width"], labelled.columns["height"]).max() == 40


def test_labels_groups_and_splits(labelled, plain, generated):
    rows = labelled.archive.columns(np.arange(labelled.archive.num_samples), ["label", "group", "split"])
    kept = [path.removeprefix(f"{generated}/") for path in labelled.kept]
    by_id = {name: row for name, *row in zip(kept, *(column.tolist() for column in rows.values()), strict=True)}
    group = Key(bytes(32)).group
    assert labelled.archive.classes == ("freckle", "mole")
    assert by_id["a/cmyk.jpg"] == [-1, -1, None]
    assert by_id["a/plain.jpg"] == [1, group("patient 0"), "fit"]
    assert by_id["many/00.png"] == [0, group("patient 0"), "val"]
    assert by_id["many/29.png"] == [1, group("patient 7"), "fit"]
    assert (labelled.archive.labelled, labelled.archive.groups, labelled.summary.labelled) == (31, 8, 31)
    assert labelled.summary.unmatched == ["line 34, 'gone.png': no image has it"]
    assert plain.archive.classes == ()


@real_data
@pytest.mark.parametrize("source", ["dermoscopy", "dermoscopy/images"])
def test_real_labels_match_from_either_folder(source):
    found = find_images([Path(REAL_DATA, source)])
    labels = read_labels(Path(REAL_DATA, "dermoscopy/labels.csv"), found)
    assert len(by_name(labels, found).facts) == labels.rows == 2401
    assert len(labels.classes) == 7
    assert labels.unmatched == []


def test_the_tool_writes_the_same_bytes_with_any_number_of_workers(generated, plain, tmp_path):
    out = tmp_path / "new folder" / "archive"
    key = fixed_key(tmp_path / "key")
    result = run_command(TOOL, generated, "--out", out, "--shard-size", 0.02, "--workers", 3, "--key", key)
    assert (result.returncode, result.stderr) == (0, "")
    files = sorted(path.relative_to(out) for path in out.rglob("*"))
    assert files == sorted(path.relative_to(plain.path) for path in plain.path.rglob("*"))
    for file in files:
        assert (out / file).is_dir() or (out / file).read_bytes() == (plain.path / file).read_bytes(), file
    for line in (
        "kept         45 images in",
        "changed      7 x turned upright, e.g. ",
        "quarantined  1 x empty file, e.g. ",
    ):
        assert line in result.stdout
    assert f"next: fastfgssl train --config paper data.path='{out}'" in result.stdout


def test_verify_of_the_tool(plain, tmp_path):
    result = run_command(TOOL, "--verify", plain.path)
    assert (result.returncode, result.stderr) == (0, "")
    shutil.copytree(plain.path, tmp_path / "copy")
    shard = tmp_path / "copy/shards/shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    result = run_command(TOOL, "--verify", tmp_path / "copy")
    assert result.returncode == 1
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["shards/shard-000001.tar"] * 2


def test_nothing_usable(tmp_path):
    source = write_files(tmp_path / "source", {"1.png": b"x", "2.jpg": b"y"})
    kept = tmp_path / "archive.private/archive.inputs.csv"
    with pytest.raises(UserError, match=f"^none of the 2 images is usable; {kept} and .*html say why$"):
        prepare(PrepareOptions(sources=[source], out=tmp_path / "archive", workers=1))
    assert len(kept.read_text().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.private", "source"]
