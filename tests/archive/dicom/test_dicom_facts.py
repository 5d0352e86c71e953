"""What a header may say: codes, known vendors and numbers come through, and no name that somebody typed."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from fastfgssl.archive.dicom.pictures import Identifiers
from fastfgssl.archive.outcome import Facts
from helpers.dicom import dataset, dicom, encoded, read

PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)
NAME = "VANDERBERG"


def test_facts_are_codes_vendors_and_numbers():
    facts = read(
        dicom(
            PIXELS,
            Modality="CT",
            BodyPartExamined="CHEST",
            Manufacturer="GE MEDICAL SYSTEMS",
            PixelSpacing=[0.5, 0.5],
            BitsStored=12,
            HighBit=11,
        )
    ).facts
    assert facts == Facts("CT", "CHEST", "GE", 0.5, 0.5, 12)


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("SIEMENS", "Siemens"),
        ("Siemens Healthineers", "Siemens"),
        ("Philips Medical Systems", "Philips"),
        ("TOSHIBA_MEC", "Toshiba"),
        ("GE Healthcare", "GE"),
        ("FUJIFILM Corporation", "Fujifilm"),
        ("General Electric Co.", "GE"),
        (f"Siemens of Dr {NAME}", "Siemens"),
        ("George's scanner", None),
        (NAME, None),
        ("John Smith", None),
    ],
)
def test_vendors_have_one_name_each(typed, known):
    assert read(dicom(PIXELS, Manufacturer=typed)).facts.manufacturer == known


BODY_PARTS = {"chest": "CHEST", "L SPINE": "LSPINE", NAME: None, "Head Smith": None}


@pytest.mark.parametrize(("typed", "known"), BODY_PARTS.items())
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_body_parts_are_the_standards(typed, known):
    assert read(dicom(PIXELS, BodyPartExamined=typed)).facts.body_part == known


def test_no_text_of_a_header_comes_through():
    data = dataset(PIXELS, Modality=NAME)
    for element in (0x00080070, 0x00180015, 0x00081090, 0x00100010, 0x00081030, 0x0008103E, 0x00104000):
        data.add_new(element, "LO", NAME)
    data.ImageType = ["ORIGINAL", NAME]
    data.BurnedInAnnotation = NAME
    data.private_block(0x0011, NAME, create=True).add_new(1, "LO", NAME)
    bytes_of_file = encoded(data)
    assert bytes_of_file.count(NAME.encode()) > 8
    picture = read(bytes_of_file)
    kept = repr(picture._replace(picture=None)) + repr(picture.picture.info)
    assert NAME not in kept
    assert picture.facts.modality is None
    assert NAME.encode() not in picture.picture.tobytes()


def test_identifiers_stand_beside():
    uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}
    assert read(dicom(PIXELS, PatientID="P 17 ", **uids)).identifiers == Identifiers("P 17", "1.2.3", "1.2.3.4")
    assert read(dicom(PIXELS)).identifiers == Identifiers("", "", "")


def set_flags(**attributes: object) -> set[str]:
    return {name for name, value in read(dicom(PIXELS, **attributes)).flags._asdict().items() if value}


def test_flags_tell_what_a_filter_wants_to_know():
    assert set_flags() == set()
    assert set_flags(BurnedInAnnotation="YES") == {"burned_in"}
    assert read(dicom(PIXELS)).flags.burned_in is None
    assert read(dicom(PIXELS, BurnedInAnnotation="NO")).flags.burned_in is False
    assert set_flags(SOPClassUID="1.2.840.10008.5.1.4.1.1.7") == {"secondary_capture"}
    assert set_flags(SOPClassUID="1.2.840.10008.5.1.4.1.1.7.2") == {"secondary_capture"}
    assert set_flags(SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.4") == set()  # a photograph
    assert set_flags(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]) == {"secondary_capture", "derived", "secondary"}
    assert set_flags(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]) == {"localizer"}
    assert set_flags(Modality="US") == {"ultrasound_without_regions"}
    region = Dataset()
    region.RegionLocationMinX0 = 3
    assert set_flags(Modality="US", SequenceOfUltrasoundRegions=[region]) == set()


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({"ImagerPixelSpacing": [0.1, 0.1]}, 0.1),
        ({"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.1, 0.1]}, 0.2),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.1, 0.1]}, 0.1),
        ({"PixelSpacing": [-1, 1]}, None),
        ({}, None),
    ],
)
def test_spacing_is_the_patients_else_the_detectors(attributes, spacing):
    facts = read(dicom(PIXELS, **attributes)).facts
    assert (facts.spacing_row, facts.spacing_column) == (spacing, spacing)
