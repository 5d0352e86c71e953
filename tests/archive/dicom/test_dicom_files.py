"""Real DICOM files: each ends as it should, and what is decoded is what GDCM decodes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fastfgssl.archive.dicom.colour import to_rgb
from fastfgssl.archive.dicom.pictures import DicomPicture, DicomSettings, read_dicom
from fastfgssl.archive.outcome import NoImage, Unusable
from helpers.dicom import WHEEL, gdcm_values, read, stored_values, wheel_file
from helpers.images import REAL_DATA, real_data

NO_IMAGES = {
    "ExplVR_BigEndNoMeta.dcm": "DICOM: RT Ion Plan Storage",
    "ExplVR_LitEndNoMeta.dcm": "DICOM: RT Ion Plan Storage",
    "dicomdirtests/DICOMDIR": "DICOM: Media Storage Directory Storage",
    "dicomdirtests/DICOMDIR-bigEnd": "DICOM: Media Storage Directory Storage",
    "dicomdirtests/DICOMDIR-empty.dcm": "DICOM: Media Storage Directory Storage",
    "dicomdirtests/DICOMDIR-implicit": "DICOM: Media Storage Directory Storage",
    "dicomdirtests/DICOMDIR-nooffset": "DICOM: Media Storage Directory Storage",
    "dicomdirtests/DICOMDIR-nopatient": "DICOM: Media Storage Directory Storage",
    "dicomdirtests/DICOMDIR-reordered": "DICOM: Media Storage Directory Storage",
    "reportsi.dcm": "DICOM: Basic Text SR Storage",
    "reportsi_with_empty_number_tags.dcm": "DICOM: Basic Text SR Storage",
    "rtplan.dcm": "DICOM: RT Plan Storage",
    "rtplan_truncated.dcm": "DICOM: RT Plan Storage",
    "rtstruct.dcm": "DICOM: RT Structure Set Storage",
    "test-SR.dcm": "DICOM: Comprehensive SR Storage",
    "waveform_ecg.dcm": "DICOM: 12-lead ECG Waveform Storage",
}
UNUSABLE = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "JPEG 2000 of more tiles than it can have",  # its SIZ is overwritten
    "MR_truncated.dcm": "cut short: 0 of 1 frames",
    "UN_sequence.dcm": "an image without pixels",
    "empty_charset_LEI.dcm": "neither pixels nor a class of object",
    "meta_missing_tsyntax.dcm": "pixels without Rows and Columns",
    "nested_priv_SQ.dcm": "pixels without Rows and Columns",
    "no_meta.dcm": "it does not begin as DICOM files do",
    "no_meta_group_length.dcm": "an image without pixels",
    "priv_SQ.dcm": "an image without pixels",
}
PICTURES = sorted({path.name for path in WHEEL.glob("*.dcm")} - set(NO_IMAGES) - set(UNUSABLE))
# where GDCM is no judge, with what it does
NOT_GDCMS = {
    "J2K_pixelrep_mismatch.dcm": "keeps the sign of the stream against that of the header",
    "SC_rgb_rle_16bit.dcm": "puts the bytes of 16-bit colour in the wrong order",
    "SC_rgb_rle_16bit_2frame.dcm": "puts the bytes of 16-bit colour in the wrong order",
    "SC_rgb_rle_32bit.dcm": "puts the bytes of 32-bit colour in the wrong order",
    "SC_rgb_rle_32bit_2frame.dcm": "puts the bytes of 32-bit colour in the wrong order",
    "SC_rgb_small_odd_big_endian.dcm": "leaves the words of a big-endian file turned around",
    "liver_1frame.dcm": "does not unpack single bits",
    "liver_expb_1frame.dcm": "does not unpack single bits",
    "rtdose_1frame.dcm": "ends the process",
    "rtdose_expb.dcm": "ends the process",
    "rtdose_expb_1frame.dcm": "ends the process",
    "rtdose_rle_1frame.dcm": "ends the process",
}


def real(name: str) -> bytes:
    return (Path(REAL_DATA or "") / "dicom" / f"{name}.dcm").read_bytes()


@pytest.mark.parametrize("name", NO_IMAGES)
def test_a_file_that_rightly_holds_no_image_is_named_by_its_class(name):
    with pytest.raises(NoImage) as kind:
        read_dicom(wheel_file(name).read_bytes(), DicomSettings())
    assert str(kind.value) == NO_IMAGES[name]


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_shown_says_why(name):
    (reason,) = read_dicom(wheel_file(name).read_bytes(), DicomSettings())
    assert isinstance(reason, Unusable)
    assert UNUSABLE[name] in str(reason)


def test_a_wheel_that_has_other_files_is_noticed():
    assert len(PICTURES) == 60
    assert set(NOT_GDCMS) < set(PICTURES)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("name", PICTURES)
def test_every_other_file_of_the_wheel_becomes_pictures(name, depth):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = list(read_dicom(wheel_file(name).read_bytes(), DicomSettings(frames="all", depth=depth)))
    assert pictures
    for picture in pictures:
        if isinstance(picture, Unusable):  # frames of doses that have none
            assert str(picture).startswith("constant: ")
            continue
        assert picture.picture.mode in (("L", "RGB") if depth == 8 else ("I;16", "RGB"))
        assert picture.picture.info == {}
        assert bool(picture.part) == (len(pictures) > 1)
        assert 0 <= picture.levels[0] < picture.levels[1] <= 65535


GDCMS = [name for name in PICTURES if name not in NOT_GDCMS]


@pytest.fixture(scope="module")
def by_gdcm() -> dict[str, np.ndarray]:
    return dict(zip(GDCMS, gdcm_values([wheel_file(name) for name in GDCMS]), strict=True))


@pytest.mark.parametrize("name", GDCMS)
def test_a_second_decoder_agrees(name, by_gdcm):
    data = wheel_file(name).read_bytes()
    expected = by_gdcm[name]
    number = len(expected) // 2
    if expected.ndim == 3:
        np.testing.assert_array_equal(stored_values(data, number), expected[number])
        return
    photometric = str(pydicom.dcmread(wheel_file(name), specific_tags=["PhotometricInterpretation"])[0x00280004].value)
    colours = to_rgb(np.ascontiguousarray(expected[number]), photometric)  # which GDCM leaves as they are stored
    difference = np.abs(np.asarray(read(data).picture).astype(int) - colours)
    assert difference.max() <= photometric.startswith("YBR_FULL"), name  # rounding


@pytest.mark.parametrize("name", NOT_GDCMS)
def test_pydicom_agrees_where_gdcm_is_no_judge(name):
    data = pydicom.dcmread(wheel_file(name))
    expected = data.pixel_array
    frames = int(data.get("NumberOfFrames", 1))
    for number in range(frames):
        frame = expected[number] if frames > 1 else expected
        np.testing.assert_array_equal(stored_values(wheel_file(name).read_bytes(), number), frame)


@real_data
@pytest.mark.parametrize(
    "name", ["CT2_J2KR", "CT2_JLSL", "CT2_JPLL", "CT2_RLE", "MR4_J2KR", "MR4_RLE", "NM1_RLE", "US1_J2KR", "US1_RLE"]
)
def test_lossless_syntaxes_give_the_uncompressed_pixels(name):
    plain = f"{name[:3]}_UNC"
    np.testing.assert_array_equal(stored_values(real(name)), stored_values(real(plain)))
    for settings in ({}, {"depth": 16}, {"window": "percentiles"}, {"window": "40/400"}):
        if name.startswith("NM1") and settings.get("window") == "40/400":
            continue
        ours, expected = read(real(name), **settings), read(real(plain), **settings)
        assert ours.picture.tobytes() == expected.picture.tobytes()
        assert ours.levels == expected.levels


# largest and mean difference; NEAR of JPEG-LS is in its stream, the others are of 1 byte for 80 and for 27 pixels
LOSSY = {"CT2_JLSN": (4, 4), "NM1_J2KI": (101, 4.3), "NM1_JPLY": (36, 2.3)}


@real_data
@pytest.mark.parametrize("name", LOSSY)
def test_lossy_syntaxes_stay_as_close_as_their_codec_promises(name):
    difference = np.abs(stored_values(real(name)).astype(int) - stored_values(real(f"{name[:3]}_UNC")))
    largest, mean = LOSSY[name]
    assert difference.max() <= largest
    assert difference.mean() <= mean


@real_data
def test_a_second_decoder_agrees_on_real_data():
    paths = sorted((Path(REAL_DATA or "") / "dicom").glob("*.dcm"))
    assert len(paths) >= 17
    for path, expected in zip(paths, gdcm_values(paths), strict=True):
        assert isinstance(read(path.read_bytes()), DicomPicture)
        np.testing.assert_array_equal(stored_values(path.read_bytes()), expected[0], err_msg=path.name)
