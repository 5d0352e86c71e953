"""What `prepare` makes of DICOM files, of images with text in them, and of pictures that are nearly the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fastfgssl.archive.building.accounting import read_accounting
from fastfgssl.archive.building.inputs import read_inputs
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.options import PrepareOptions
from fastfgssl.archive.prepare import prepare
from fastfgssl.archive.report.samples import mostly_gray
from fastfgssl.archive.verification import verify
from fastfgssl.data.decode import depth_of
from helpers.dicom import dicom, wheel_file
from helpers.images import REAL_DATA, inputs_of, real_data

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"


def scan(seed: int) -> np.ndarray:
    """12 bits, smooth."""
    cells = np.random.default_rng(seed).integers(0, 4096, (6, 7)).astype(np.float32)
    return np.asarray(Image.fromarray(cells).resize((96, 80), Image.Resampling.BICUBIC)).clip(0, 4095).astype(np.uint16)


def with_text(pixels: np.ndarray) -> np.ndarray:
    picture = Image.fromarray((pixels >> 4).astype(np.uint8)).resize((288, 240))
    ImageDraw.Draw(picture).text((20, 30), "DOE^JANE 12.03.1957", fill=255, font=ImageFont.load_default(18))
    return np.asarray(picture).astype(np.uint16) << 4


def make(tmp_path: Path, **options: object) -> tuple[Archive, dict[str, tuple[str, str]], object]:
    """The archive, what became of each file by its path, and the summary."""
    options = PrepareOptions(sources=[tmp_path / "source"], out=tmp_path / "archive", workers=1, **options)
    summary = prepare(options)
    rows = list(read_inputs(options.inputs_file))
    outcomes = {Path(row[2]).name + (f" {row[1]}" if row[1] else ""): (row[3], row[4]) for row in rows}
    return Archive.open(options.out), outcomes, summary


@pytest.fixture
def export(tmp_path) -> Path:
    """What comes from a PACS: names of devices, several frames, a report, captures, and what is none of them."""
    source = tmp_path / "source"
    source.mkdir()
    stored = {"BitsStored": 12, "HighBit": 11}
    header = {"PatientName": "Roe^Jane", "PatientID": "MRN-4471193", **stored}
    (source / "IM000001").write_bytes(dicom(scan(1), **header, WindowCenter=1000, WindowWidth=800))
    (source / "1.2.840.5").write_bytes(dicom(scan(2), **header))
    (source / "ANY_NAME").write_bytes(dicom(scan(3), PatientID="MRN-2", **stored))
    (source / "frames.dcm").write_bytes(dicom(np.stack([scan(4), scan(5), scan(6)]), PatientID="MRN-2", **stored))
    (source / "capture.dcm").write_bytes(dicom(scan(7), SOPClassUID=SECONDARY_CAPTURE, **stored))
    (source / "declared.dcm").write_bytes(dicom(scan(8), BurnedInAnnotation="YES", **stored))
    (source / "written.dcm").write_bytes(dicom(with_text(scan(9)), **stored))
    (source / "2").write_bytes(b"a list of something")
    (source / "report.dcm").write_bytes(wheel_file("reportsi.dcm").read_bytes())
    (source / "plan.dcm").write_bytes(wheel_file("rtplan.dcm").read_bytes())
    return source


def test_a_dicom_export_becomes_an_archive(export, tmp_path):
    archive, outcomes, summary = make(tmp_path, depth=16, frames="all")
    assert {name: outcome for name, (outcome, _) in outcomes.items()} == {
        "1.2.840.5": "written",
        "IM000001": "written",
        "ANY_NAME": "written",
        "frames.dcm frame 1": "written",
        "frames.dcm frame 2": "written",
        "frames.dcm frame 3": "written",
        "capture.dcm": "filtered",
        "declared.dcm": "filtered",
        "written.dcm": "filtered",
        "2": "skipped",
        "report.dcm": "skipped",
        "plan.dcm": "skipped",
    }
    kinds = {"no image, by its first bytes": 1, "DICOM: Basic Text SR Storage": 1, "DICOM: RT Plan Storage": 1}
    assert summary.skipped == kinds
    assert kinds.keys() <= set(read_accounting(archive.path)["reason"].to_pylist())
    assert (summary.filtered, summary.quarantined) == ({"burned-in text": 3}, {})
    assert [outcomes[name][1].split(";")[0] for name in ("capture.dcm", "declared.dcm")] == [
        "burned-in text: a capture of a screen or a film",
        "burned-in text: BurnedInAnnotation is YES",
    ]
    assert depth_of(archive) == "own"
    ids = np.arange(archive.num_samples)
    rows = archive.columns(ids, ("bit_depth", "low", "high", "group", "modality"))
    assert set(rows["bit_depth"].tolist()) == {16}
    assert (600, 1399) in set(zip(rows["low"].tolist(), rows["high"].tolist(), strict=True))
    assert set(rows["modality"].tolist()) == {"MR"}
    # a patient is a group, and its name is nowhere
    groups = rows["group"].tolist()
    assert len(set(groups)) == archive.groups == 2
    assert sorted(map(groups.count, set(groups))) == [2, 4]
    stored = b"".join(path.read_bytes() for path in archive.path.rglob("*") if path.is_file())
    for name in ("Roe", "MRN-4471193", "MRN-2"):
        assert not any(name.encode(coding) in stored for coding in ("utf-8", "utf-16-le", "utf-16-be"))


def test_images_with_text_are_kept_if_that_is_asked_for(export, tmp_path):
    archive, _, summary = make(tmp_path, burned_in="keep")
    assert archive.num_samples == 7
    assert not summary.filtered
    assert depth_of(archive) == "8"
    assert mostly_gray(archive)


def blotches(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(40, 216, (14, 18, 3), np.uint8)
    return Image.fromarray(cells).resize((180, 140), Image.Resampling.BICUBIC)


@pytest.fixture
def copies(tmp_path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for seed in range(4):
        blotches(seed).save(source / f"{seed}.png")
    ImageOps.mirror(blotches(0)).resize((90, 70), Image.Resampling.BICUBIC).save(source / "5 of 0.png")
    blotches(0).save(source / "6 of 0.jpg", quality=60)
    blotches(2).save(source / "7 the same as 2.png", compress_level=1)
    table = "image,label,patient\n0.png,a,one\n1.png,b,two\n5 of 0.png,a,three\n3.png,b,three\n"
    (tmp_path / "labels.csv").write_text(table)
    return source


def test_pictures_that_are_nearly_the_same_are_told_of(copies, tmp_path):
    archive, outcomes, summary = make(tmp_path, near_duplicates="report")
    assert archive.num_samples == 6
    assert not mostly_gray(archive)
    assert outcomes["7 the same as 2.png"][0] == "duplicate"
    told = {frozenset(Path(path).name for path in pair.split(" and ")) for pair in summary.near_duplicates}
    assert told == {
        frozenset({"0.png", "5 of 0.png"}),
        frozenset({"0.png", "6 of 0.jpg"}),
        frozenset({"5 of 0.png", "6 of 0.jpg"}),
    }


def test_pictures_that_are_nearly_the_same_are_left_out(copies, tmp_path):
    archive, outcomes, _ = make(tmp_path, near_duplicates="drop")
    assert archive.num_samples == 4
    assert {name for name, (outcome, _) in outcomes.items() if outcome == "duplicate"} == {
        "5 of 0.png",
        "6 of 0.jpg",
        "7 the same as 2.png",
    }
    assert verify(archive) == []


def test_a_chain_of_likenesses_leaves_out_none_that_is_unlike_what_is_kept(tmp_path):
    """Each is like the next, and the first and the last are not alike."""
    rng = np.random.default_rng(0)
    one, other = (np.kron(rng.normal(0, 30, (32, 32)), np.ones((4, 4))) for _ in range(2))
    source = tmp_path / "source"
    source.mkdir()
    for number, angle in enumerate(np.radians([0, 20, 40, 60])):
        picture = 128 + np.cos(angle) * one + np.sin(angle) * other
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(source / f"{number}.png")
    _, outcomes, _ = make(tmp_path, near_duplicates="drop")
    assert [outcomes[f"{number}.png"][0] for number in range(4)] == ["written", "duplicate", "written", "duplicate"]


def test_pictures_that_are_nearly_the_same_share_a_group_and_so_do_their_groups(copies, tmp_path):
    labels = {"labels": tmp_path / "labels.csv", "group_column": "patient"}
    archive, _, _ = make(tmp_path, near_duplicates="group", **labels)
    groups = archive.columns(np.arange(6), ("group",))["group"].tolist()  # 0, 1, 2, 3, 5 of 0, 6 of 0
    assert groups[0] == groups[3] == groups[4] == groups[5]
    assert len({groups[0], groups[1], groups[2]}) == 3


def test_copies_of_what_an_archive_holds_share_its_group(copies, tmp_path):
    later = tmp_path / "later"
    later.mkdir()
    for name in ("5 of 0.png", "6 of 0.jpg", "7 the same as 2.png"):
        (copies / name).rename(later / name)
    labels = {"labels": tmp_path / "labels.csv", "group_column": "patient"}
    before, _, _ = make(tmp_path, **labels)
    held = before.columns(np.arange(4), ("group",))["group"].tolist()  # 0, 1, 2, 3
    for path in later.iterdir():
        path.rename(copies / path.name)
    (copies / "4 the same as 0.png").write_bytes((copies / "0.png").read_bytes())
    (tmp_path / "labels.csv").write_text("image,label,patient\n3.png,b,three\n")
    blotches(9).save(copies / "9.png")
    archive, _, _ = make(tmp_path, near_duplicates="group", **labels)
    groups = archive.columns(np.arange(archive.num_samples), ("group",))["group"].tolist()
    assert groups[:4] == held
    assert groups[4:] == [held[0], held[0], -1]  # 5 of 0, 6 of 0, 9

    archive, _, _ = make(tmp_path, near_duplicates="group", duplicates="keep", overwrite=True)
    groups = archive.columns(np.arange(9), ("group",))["group"].tolist()  # 0 to 3, 4 as 0, 5 of 0, 6 of 0, 7 as 2, 9
    assert len({groups[place] for place in (0, 4, 5, 6)}) == 1
    assert groups[2] == groups[7] != groups[0]
    assert (groups[1], groups[3], groups[8]) == (-1, -1, -1)


@real_data
def test_what_went_wrong_elsewhere_is_accounted_for_as_it_should_be(tmp_path):
    """Each file of the folders of hard cases, as their READMEs say; what is in no set here is written."""
    sources = [Path(REAL_DATA or "", name) for name in ("cases", "dicom", "odd", "sixteen_bit")]
    asked = PrepareOptions(sources=sources, out=tmp_path / "archive", burned_in="keep", depth=16, workers=1)
    prepare(asked)
    outcomes = {}
    for row in inputs_of(asked):
        outcomes[Path(row["path"]).name + row["part"]] = row["outcome"], row["reason"].partition(":")[0]
    reasons = {name: reason for name, (outcome, reason) in outcomes.items() if outcome in ("quarantined", "filtered")}
    assert reasons == {
        "broken.png": "damaged or unsupported PNG",
        "cut_at_40_percent_with_end_marker.jpg": "damaged or unsupported JPEG",
        "empty.jpg": "empty file",
        "lfs_pointer.png": "not the image but a Git LFS pointer to it",
        "png_decompression_dos.png": "too small",
        "stack_first_page_black.tifpage 1": "constant",
        "truncated_image.png": "damaged or unsupported PNG",
        "truncated_jpeg.jpg": "damaged or unsupported JPEG",
        "zeroed_from_a_third.jpg": "damaged or unsupported JPEG",
    }
    # pixels of all lossless syntaxes are those of the first; of 12-bit JPEG and other lossy ones they are their own
    duplicates = {name for name, (outcome, _) in outcomes.items() if outcome == "duplicate"}
    assert {name for name in duplicates if name.endswith(".dcm")} == {
        *(f"CT2_{syntax}.dcm" for syntax in ("JLSL", "JPLL", "RLE", "UNC")),
        *("MR4_RLE.dcm", "MR4_UNC.dcm", "NM1_UNC.dcm", "US1_RLE.dcm", "US1_UNC.dcm"),
    }
    others = {name for name, (outcome, _) in outcomes.items() if outcome == "written"}
    assert {"NM1_JPLY.dcm", "XA1_JLSN.dcm", "monkey12.jpg", "float32.tif", "hounsfield_int16.tif"} <= others
    assert {f"stack_first_page_black.tifpage {page}" for page in (2, 3, 4)} <= others
