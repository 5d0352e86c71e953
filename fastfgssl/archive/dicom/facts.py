"""What a DICOM header may say in an archive: codes of the standard, vendors that are known, and numbers.

Nothing is copied from the header but numbers: a code or a vendor is one of the lists below or it is left out, so that
no name can come through, whichever attribute somebody typed it into.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fastfgssl.archive.dicom.header import DicomFile, Header
from fastfgssl.archive.dicom.layout import Layout
from fastfgssl.archive.outcome import Facts

# PS3.3 C.7.3.1.1.1, with those that are retired
_MODALITIES = """
AR AS ASMT AU BDUS BI BMD CF CP CR CS CT CTPROTOCOL DD DF DG DM DMS DOC DS DX EC ECG EEG EMG EOG EPS ES FA FID FS GM
HC HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PLAN
PLETH POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SC SEG SM SMR SR
SRF ST STAIN TEXTUREMAP TG US VA VF XA XAPROTOCOL XC
"""
MODALITIES = frozenset(_MODALITIES.split())
# PS3.16 annex L, as archives have them; spaces, hyphens and underscores are left out when they are compared
_BODY_PARTS = """
ABDOMEN ABDOMENPELVIS ADRENAL ANKLE ANUS AORTA APPENDIX ARM ARTERY ATRIUM AXILLA BACK BILEDUCT BLADDER BONE BRAIN
BREAST BRONCHUS BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDOMENPELVIS
CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS
EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK HEART HIP HUMERUS IAC ILEUM ILIUM
JAW JEJUNUM KIDNEY KNEE LARYNX LEG LEGS LIVER LOWERLEG LOWERLIMB LSPINE LSSPINE LUMBARSPINE LUNG LYMPHNODE MANDIBLE
MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE ORBIT OVARY PANCREAS PAROTID PATELLA
PELVIS PENIS PERINEUM PHARYNX PITUITARY PLACENTA PROSTATE RADIUS RECTUM RETINA RIB RIBS SACRUM SCALP SCAPULA SCROTUM
SELLA SHOULDER SIJOINT SINUS SKIN SKULL SPINALCORD SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH
THORACICSPINE THORAX THUMB THYMUS THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TOOTH TRACHEA TRUNK TSPINE ULNA
UPPERARM UPPERLIMB URETER URETHRA UTERUS VAGINA VERTEBRA VULVA WHOLEBODY WHOLESPINE WRIST ZYGOMA
"""
BODY_PARTS = frozenset(_BODY_PARTS.split())
# Word by which a vendor is known: the name that the archive has for it
MANUFACTURERS = {
    "acuson": "Acuson", "adac": "ADAC", "agfa": "Agfa", "aloka": "Aloka", "aperio": "Aperio", "bruker": "Bruker",
    "canon": "Canon", "carestream": "Carestream", "zeiss": "Carl Zeiss", "esaote": "Esaote", "fonar": "Fonar",
    "fuji": "Fujifilm", "fujifilm": "Fujifilm", "ge": "GE", "general electric": "GE", "hamamatsu": "Hamamatsu",
    "heidelberg": "Heidelberg Engineering", "hitachi": "Hitachi", "hologic": "Hologic", "kodak": "Kodak",
    "konica": "Konica Minolta", "leica": "Leica", "lodox": "Lodox", "lorad": "Lorad", "mediso": "Mediso",
    "mindray": "Mindray", "nidek": "Nidek", "olympus": "Olympus", "optos": "Optos", "philips": "Philips",
    "picker": "Picker", "planmeca": "Planmeca", "samsung": "Samsung", "medison": "Samsung", "sectra": "Sectra",
    "shimadzu": "Shimadzu", "siemens": "Siemens", "sonosite": "SonoSite", "supersonic": "SuperSonic Imagine",
    "swissray": "Swissray", "topcon": "Topcon", "toshiba": "Toshiba", "united imaging": "United Imaging",
    "uih": "United Imaging", "varian": "Varian", "elscint": "Elscint", "marconi": "Marconi", "hp": "Hewlett-Packard",
    "elekta": "Elekta", "neusoft": "Neusoft", "ziehm": "Ziehm", "imatron": "Imatron", "trex": "Trex",
    "dentsply": "Dentsply Sirona", "sirona": "Dentsply Sirona", "roche": "Roche", "ventana": "Ventana",
    "3dhistech": "3DHISTECH", "atl": "ATL", "vidar": "Vidar", "lumisys": "Lumisys", "howtek": "Howtek", "eizo": "Eizo",
}  # fmt: skip
SECONDARY_CAPTURES = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.")
SLIDES = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_BESIDE = {"LABEL": "label of a slide", "OVERVIEW": "overview of a slide", "THUMBNAIL": "thumbnail of a slide"}
LONGEST_SPACING = 1000.0  # millimetres


class Identifiers(NamedTuple):
    """Raw values, by which images are grouped. They name a person: only a keyed hash of them may be written."""

    patient: str
    study: str
    series: str
    """Empty where the header has none."""


class Flags(NamedTuple):
    """What a filter may want to know of an image."""

    burned_in: bool | None
    """BurnedInAnnotation; None where the header does not say."""
    secondary_capture: bool
    """Of a screen, a film or a camera, by its class of object, and what devices call a screen save."""
    ultrasound_without_regions: bool
    """An ultrasound that does not say where in it the scan lies: text may be anywhere."""
    localizer: bool
    derived: bool
    secondary: bool
    """Values 1 and 2 of ImageType: made from other images, and after the examination."""
    beside_slide: str
    """Of a slide's file that is no level, what it shows: the label and the overview may name the patient."""


def facts(header: Header, layout: Layout, pixel_spacing: tuple[float, float] | None) -> Facts:
    """Of a picture whose pixels are `pixel_spacing` apart."""
    row, column = pixel_spacing or (None, None)
    return Facts(modality(header), body_part(header), manufacturer(header), row, column, layout.stored)


def modality(header: Header) -> str | None:
    code = header.text(0x00080060)
    return code if code in MODALITIES else None


def body_part(header: Header) -> str | None:
    code = re.sub(r"[ _-]", "", header.text(0x00180015).upper())
    return code if code in BODY_PARTS else None


def manufacturer(header: Header) -> str | None:
    words = " ".join(re.findall(r"[a-z0-9]+", header.text(0x00080070).lower()))
    for known, name in MANUFACTURERS.items():
        if f" {known} " in f" {words} ":
            return name
    return None


def spacing(header: Header) -> tuple[float, float] | None:
    """Millimetres from row to row and from column to column: in the patient, else on the detector or the film."""
    for tag in (0x00280030, 0x00181164, 0x00182010):
        values = header.decimals(tag)[:2]
        if len(values) == 2 and all(0 < value <= LONGEST_SPACING for value in values):
            return values[0], values[1]
    return None


def pixel_height(header: Header) -> float:
    """Of a pixel whose width is 1."""
    aspect = header.decimals(0x00280034)[:2]
    if len(aspect) == 2 and min(aspect) > 0:
        return aspect[0] / aspect[1]
    apart = spacing(header)
    return apart[0] / apart[1] if apart else 1.0


def identifiers(header: Header) -> Identifiers:
    return Identifiers(header.text(0x00100020), header.text(0x0020000D), header.text(0x0020000E))


def flags(file: DicomFile, header: Header) -> Flags:
    of_frame = 0x00089007  # FrameType, which says of a frame what ImageType says of all that are in a file
    image_type = [value.upper() for value in header.texts(of_frame if of_frame in header else 0x00080008)]
    kind = header.text(0x00080016)
    is_ultrasound = modality(header) in ("US", "IVUS", "BDUS")
    return Flags(
        {"YES": True, "NO": False}.get(header.text(0x00280301).upper()),
        kind.startswith(SECONDARY_CAPTURES[1])
        or kind == SECONDARY_CAPTURES[0]
        or any("SCREEN" in value for value in image_type),
        is_ultrasound and not header.items(0x00186011),
        "LOCALIZER" in image_type or "SCOUT" in image_type,
        image_type[0] == "DERIVED",
        image_type[1:2] == ["SECONDARY"],
        beside_slide(header) if kind == SLIDES else "",
    )


def beside_slide(header: Header) -> str:
    """What a file of a slide shows if that is no level, by ImageType and SpecimenLabelInImage; empty for a level."""
    flavour = header.texts(0x00080008)[2:3]
    has_label = header.text(0x00480010).upper() == "YES"
    return _BESIDE.get(flavour[0].upper() if flavour else "", _BESIDE["LABEL"] if has_label else "")
