"""Which objects of DICOM hold no pixels, as far as their class or modality says so before they are read."""

from __future__ import annotations

import re

from pydicom.uid import UID, UID_dictionary

OF_CLASS = "DICOM"
"""What the reason begins with why an object is no image; behind a colon follows what kind it is."""
# names of PS3.6 annex A; what is not among them is read, and its contents tell
_CLASSES = re.compile(
    r".*\b(SR|Waveform|Presentation State|Document|Encapsulated \w+|Structure Set|Plan|Record|Registration|Fiducials"
    r"|Raw Data|Spectroscopy|Mapping|Measurements|Report|Log) Storage( - Trial)?"
)
_OF_MODALITIES = "AU ECG EEG EMG EOG EPS FID HD KO PLAN PR REG RESP RTPLAN RTRECORD RTSTRUCT RWV SMR SR"
_MODALITIES = frozenset(_OF_MODALITIES.split())


def without_pixels(sop_class: str, modality: str) -> str:
    """What kind of object it is, in the words of `read_dicom`, if it can hold no pixels; empty if it may.

    sop_class: its UID, or empty where nothing tells; only then the modality decides.
    """
    if sop_class:
        name = UID(sop_class).name if sop_class in UID_dictionary else ""
        return f"{OF_CLASS}: {name}" if _CLASSES.fullmatch(name) else ""
    return f"{OF_CLASS}: modality {modality}" if modality in _MODALITIES else ""
