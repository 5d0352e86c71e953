"""Sound images that settings leave out: each is accounted for, none is called bad, and no other is lost."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from fastfgssl.archive.building.accounting import counts, read_accounting
from fastfgssl.archive.dicom.filters import HeaderFilters
from fastfgssl.archive.dicom.pictures import DicomSettings, read_dicom
from fastfgssl.archive.images.filters import PictureFilters, contrast
from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.options import PrepareOptions
from fastfgssl.archive.outcome import Filtered
from fastfgssl.archive.prepare import prepare
from fastfgssl.archive.report.table import report_rows
from fastfgssl.archive.verification import verify
from fastfgssl.runtime.errors import UserError
from helpers.dicom import dataset, dicom, encoded
from helpers.images import encode, gradient, inputs_of, run, write_files

ALL = {"min_side": 0, "min_contrast": 0, "max_aspect": 0, "leave_out": "none"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def noise(spread: int, *, around: int = 100, side: int = 40) -> Image.Image:
    rng = np.random.default_rng(spread)
    return Image.fromarray((around + rng.integers(-spread, spread + 1, (side, side))).astype(np.uint8))


def gray(low: int, high: int) -> np.ndarray:
    return np.linspace(low, high, 64 * 48).reshape(48, 64).astype(np.uint16)


PICTURES = {
    "ordinary.png": encode(gradient(), "PNG"),
    "pixel.png": encode(gradient(1, 1), "PNG"),
    "small.jpg": encode(gradient(15, 90), "JPEG"),
    "just large enough.png": encode(gradient(16, 90), "PNG"),
    "strip.png": encode(gradient(341, 17), "PNG"),
    "not quite a strip.png": encode(gradient(340, 17), "PNG"),
    "even.png": encode(noise(1), "PNG"),
    "faint.png": encode(noise(2), "PNG"),
    "one value.png": encode(Image.new("L", (40, 40), 7), "PNG"),
    "cut.png": encode(gradient(), "PNG")[:-30],
}
# a CT whose header windows 0 to 400: all that is measured lies above, but for the corner
HEADER = {"Modality": "CT", "WindowCenter": 200, "WindowWidth": 400, "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}
SCAN = gray(0, 400)
DICOMS = {
    "ct.dcm": dicom(SCAN, **HEADER),
    "dx.dcm": dicom(gray(0, 390), **HEADER | {"Modality": "DX"}),
    "no modality.dcm": dicom(gray(0, 380), **HEADER | {"Modality": ""}),
    "scout.dcm": dicom(gray(0, 370), **HEADER | {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    "derived.dcm": dicom(gray(0, 360), **HEADER | {"ImageType": ["DERIVED", "PRIMARY"]}),
    "reformatted.dcm": dicom(gray(0, 350), **HEADER | {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}),
    "capture.dcm": dicom(gray(0, 340), **HEADER, SOPClassUID=SECONDARY_CAPTURE, BurnedInAnnotation="NO"),
}


@pytest.fixture
def source(tmp_path) -> Path:
    return write_files(tmp_path / "source", PICTURES | DICOMS)


def make(source: Path, **options: object) -> tuple[dict[str, tuple[str, str]], object, PrepareOptions]:
    """What became of each file, the summary, and the options."""
    asked = PrepareOptions(sources=[source], out=source.parent / "archive", workers=1, **options)
    summary = prepare(asked)
    assert verify(Archive.open(asked.out)) == []
    became = {Path(row["path"]).name: (row["outcome"], row["reason"]) for row in inputs_of(asked)}
    return became, summary, asked


def of_outcome(became: dict[str, tuple[str, str]], outcome: str) -> dict[str, str]:
    return {name: reason for name, (found, reason) in became.items() if found == outcome}


def test_what_is_left_out_is_listed_with_its_reason_and_is_not_called_bad(source):
    became, summary, options = make(source, min_contrast=1.0)
    assert of_outcome(became, "filtered") == {
        "pixel.png": "too small: 1 x 1 pixels, --min-side is 16",
        "small.jpg": "too small: 15 x 90 pixels, --min-side is 16",
        "strip.png": "extreme aspect: 341 x 17 pixels, --max-aspect is 20",
        "even.png": "nearly constant: a contrast of 0.82 levels of 255, --min-contrast is 1",
        "scout.dcm": "localizer: its ImageType says so",
    }
    assert of_outcome(became, "quarantined").keys() == {"one value.png", "cut.png"}
    assert summary.filtered == {"too small": 2, "extreme aspect": 1, "nearly constant": 1, "localizer": 1}
    assert Path(summary.examples["localizer"]).name == "scout.dcm"
    rows = dict(report_rows(options, summary))
    assert rows["filtered"].startswith("1 x ")
    archive = Archive.open(options.out)
    assert archive.quarantined == 2
    accounting = read_accounting(options.out)
    assert counts(accounting) == {"written": 10, "filtered": 5, "quarantined": 2}
    filtered = [row["reason"] for row in accounting.to_pylist() if row["outcome"] == "filtered"]
    assert sorted(filtered) == ["extreme aspect", "localizer", "nearly constant", "too small", "too small"]


def test_each_filter_can_be_turned_off(source):
    became, summary, _ = make(source, **ALL)
    assert not summary.filtered
    assert of_outcome(became, "quarantined").keys() == {"one value.png", "cut.png"}
    assert of_outcome(became, "written").keys() == (PICTURES | DICOMS).keys() - {"one value.png", "cut.png"}


def test_modalities_and_kinds_of_dicom_images(source):
    became, _, _ = make(source, modality="dx, mg", leave_out="none")
    filtered = of_outcome(became, "filtered")
    assert filtered.keys() & DICOMS.keys() == DICOMS.keys() - {"dx.dcm"}
    assert filtered["ct.dcm"] == "modality CT: --modality is DX,MG"
    assert filtered["no modality.dcm"] == "modality unknown: --modality is DX,MG"
    became, _, _ = make(source, overwrite=True, leave_out="secondary,derived")
    filtered = of_outcome(became, "filtered")
    assert {name: filtered[name] for name in filtered.keys() & DICOMS.keys()} == {
        "derived.dcm": "derived: its ImageType says so",
        "reformatted.dcm": "derived: its ImageType says so",
        "capture.dcm": "secondary: a capture of a screen or a film",
    }


def test_an_unwanted_image_is_told_before_it_is_decoded():
    header = {"Rows": 64, "Columns": 48, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "SamplesPerPixel": 1}
    stream = encapsulate([b"what no decoder reads.  "])
    data = dicom(stream, **header, PhotometricInterpretation="MONOCHROME2", Modality="CT", syntax=JPEG2000Lossless)
    (told,) = read_dicom(data, DicomSettings())
    assert not isinstance(told, Filtered)
    (told,) = read_dicom(data, DicomSettings(filters=HeaderFilters(modalities=("MG",))))
    assert isinstance(told, Filtered)


def test_a_localizer_is_told_frame_by_frame():
    """An enhanced object says of each frame what it is."""
    data = dataset(np.stack([SCAN, SCAN[::-1]]), **HEADER)
    frames = []
    for kind in ("LOCALIZER", "AXIAL"):
        of_type, item = Dataset(), Dataset()
        of_type.FrameType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
        item.CTImageFrameTypeSequence = [of_type]
        frames.append(item)
    data.PerFrameFunctionalGroupsSequence = frames
    settings = DicomSettings(frames="all", filters=HeaderFilters(leave_out=("localizer",)))
    first, second = read_dicom(encoded(data), settings)
    assert isinstance(first, Filtered)
    assert (first.part, second.part) == ("frame 1", "frame 2")
    assert second.flags.localizer is False


def test_contrast_is_what_training_sees():
    """A 12-bit picture in 16-bit levels has the contrast of its window; colour that of its strongest channel."""
    deep = gray(0, 40)
    assert contrast(deep, (0, 4095)) == pytest.approx(40 / 4095 * 255 / np.sqrt(12), rel=0.05)
    assert contrast(deep, (0, 40)) == pytest.approx(255 / np.sqrt(12), rel=0.05)
    assert contrast(deep, (1000, 2000)) == 0
    red = np.zeros((40, 40, 3), np.uint8)
    red[:20, :, 0] = 200
    assert contrast(red, (0, 255)) == 100
    with pytest.raises(Filtered, match=r"nearly constant: a contrast of 0\.7"):
        PictureFilters(min_contrast=1).check_contrast(deep, (0, 4095))


@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 5))
def test_the_short_way_decides_as_the_whole_picture(seed, height, width, least):
    rng = np.random.default_rng(seed)
    pixels = (100 + rng.normal(0, rng.uniform(0, 9), (height, width))).clip(0, 255).astype(np.uint8)
    pixels[::8, ::8] += rng.integers(0, 40, dtype=np.uint8)  # where it looks first, it sees more
    try:
        PictureFilters(min_contrast=least).check_contrast(pixels, (0, 255))
    except Filtered:
        assert pixels.std() < least
    else:
        assert pixels.std() >= least or np.isclose(pixels.std(), least)


def test_the_size_that_counts_is_that_before_it_is_made_smaller():
    kept = run(PICTURES["just large enough.png"], short_side=8, filters=PictureFilters(min_side=16))
    assert (kept.width, kept.height) == (8, 45)
    with pytest.raises(Filtered, match="too small: 15 x 90"):
        run(PICTURES["small.jpg"], filters=PictureFilters(min_side=16))


def test_soft_tissue_in_sixteen_bits_is_not_nearly_constant(tmp_path):
    """Some 130 of 4,096 levels, as a CT's soft tissue has them without a window."""
    tissue = np.random.default_rng(0).normal(1050, 15, (60, 60)).astype(np.uint16)
    source = write_files(tmp_path / "source", {"tissue.png": encode(Image.fromarray(tissue), "PNG")})
    assert of_outcome(make(source)[0], "written").keys() == {"tissue.png"}


def test_an_archive_keeps_its_filters(source):
    make(source, modality="CT")
    made_with = json.loads((source.parent / "archive/manifest.json").read_text())["made_with"]
    filters = {"min_side": 16, "min_contrast": 0.25, "max_aspect": 20.0, "modality": "CT", "leave_out": "localizer"}
    assert made_with.items() >= filters.items()
    with pytest.raises(UserError, match="was made with --modality CT: add to it in the same way"):
        make(source)
    with pytest.raises(UserError, match="was made with --min-side 16: add to it in the same way"):
        make(source, modality="CT", min_side=0)
    write_files(source, {"more.png": encode(gradient(9, 9), "PNG")})
    became, summary, _ = make(source, modality="CT")
    assert became["more.png"][0] == "filtered"
    assert (summary.added, summary.filtered) == (0, {"too small": 1})


def test_pages_are_filtered_each_and_once(source, tmp_path):
    """--retry takes a file again of which a page was filtered and another damaged."""
    pages = [gradient(40, 30), gradient(5, 5), gradient(41, 30)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    broken = Path(write_files(tmp_path / "pages", {"pages.tif": _without_last_page(buffer.getvalue())}))
    _, first, options = make(broken)
    assert (first.added, first.filtered, first.quarantined.total()) == (1, {"too small": 1}, 1)
    (broken / "pages.tif").write_bytes(buffer.getvalue())
    _, second, _ = make(broken, retry=True)
    assert (second.samples, second.added, second.filtered) == (2, 1, {})
    parts = [(row["part"], row["outcome"]) for row in inputs_of(options)]
    assert sorted(parts) == [("page 1", "written"), ("page 2", "filtered"), ("page 3", "written")]
    assert counts(read_accounting(options.out)) == {"written": 2, "filtered": 1}


def _without_last_page(data: bytes) -> bytes:
    """The last page's strip begins behind the end of the file."""
    with Image.open(io.BytesIO(data)) as image:
        image.seek(2)
        offset = image.tag_v2[273][0]
    place = data.index(offset.to_bytes(4, "little"))
    return data[:place] + (1 << 28).to_bytes(4, "little") + data[place + 4 :]


def test_nothing_left_is_said_with_what_was_filtered(tmp_path):
    source = write_files(tmp_path / "source", {"1.png": PICTURES["pixel.png"], "2.png": PICTURES["cut.png"]})
    with pytest.raises(UserError, match="none of the 2 images is usable, and 1 were left out by filters such as"):
        make(source)
