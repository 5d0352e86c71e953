"""Whatever a file holds or claims, it ends in pictures or a reason, soon and in little memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
import zlib

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from fastfgssl.archive.dicom.pictures import DicomPicture, DicomSettings, read_dicom
from fastfgssl.archive.outcome import NoImage, Unusable
from helpers.dicom import WHEEL, dicom, read

SETTINGS = DicomSettings(max_pixels=4_000_000, max_bytes=64_000_000)
BITS_8 = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PhotometricInterpretation": "MONOCHROME2"}
JPEG_2000, JPEG_LS, RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"
FILES = [path for path in sorted(WHEEL.glob("*.dcm")) if path.stat().st_size < 100_000]
MEMORY = 40_000_000  # bytes that a refusal may take


def outcomes(data: bytes, settings: DicomSettings = SETTINGS) -> list[str]:
    """What became of it: "picture" or the reason. Anything else is raised."""
    try:
        return ["picture" if isinstance(o, DicomPicture) else checked(o) for o in read_dicom(data, settings)]
    except NoImage as kind:
        return [str(kind)]


def checked(outcome: object) -> str:
    assert isinstance(outcome, Unusable)
    assert "\n" not in str(outcome)
    assert len(str(outcome)) < 250
    return str(outcome)


def refused(data: bytes, settings: DicomSettings = SETTINGS) -> str:
    """The only reason, given in little memory."""
    tracemalloc.start()
    try:
        (reason,) = outcomes(data, settings)
        assert tracemalloc.get_traced_memory()[1] < MEMORY + len(data)
    finally:
        tracemalloc.stop()
    assert reason != "picture"
    return reason


def compressed(syntax: str, frame: bytes, **attributes: object) -> bytes:
    return dicom(encapsulate([frame]), syntax=pydicom.uid.UID(syntax), **BITS_8 | attributes)


def test_claimed_sizes_are_refused_before_memory_is_taken():
    tiny = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert refused(dicom(tiny, Rows=60_000, Columns=60_000)).startswith("too large: 60000 x 60000 pixels, --max-pixels")
    assert "cut short: 0 of 1 frames" in refused(dicom(tiny, Rows=1900, Columns=1900))
    assert (
        "cut short: 1 of 1000000 frames"
        in outcomes(dicom(tiny, NumberOfFrames=1_000_000), DicomSettings(frames="all"))[1]
    )
    assert "cut short: 1 of 1000000 frames" in refused(dicom(tiny, NumberOfFrames=1_000_000))
    assert outcomes(dicom(tiny, NumberOfFrames=-3)) == ["picture"]
    assert outcomes(dicom(tiny, BitsStored=99, HighBit=200)) == ["picture"]


def test_frames_of_too_many_bytes_together_are_refused():
    frame = imagecodecs.jpegls_encode(np.arange(2_000_000).astype(np.uint8).reshape(1000, 2000))
    frames = [frame] * 40
    data = dicom(
        encapsulate(frames), syntax=pydicom.uid.UID(JPEG_LS), Rows=1000, Columns=2000, NumberOfFrames=40, **BITS_8
    )
    every = DicomSettings(frames="all", max_bytes=64_000_000)
    assert refused(data, every).startswith("too large: 40 frames of 2000 x 1000 pixels are 80000000 bytes")
    assert outcomes(data) == ["picture"]


def test_a_stream_larger_than_its_header_says_is_not_decoded():
    values = np.arange(100, dtype=np.uint8).reshape(10, 10)
    jpeg_ls = bytearray(imagecodecs.jpegls_encode(values))
    struct.pack_into(">HH", jpeg_ls, jpeg_ls.index(b"\xff\xf7") + 5, 60_000, 60_000)
    reason = "JPEG-LS of 60000 x 60000 pixels with 1 samples in a file of 10 x 10 with 1"
    assert reason in refused(compressed(JPEG_LS, bytes(jpeg_ls), Rows=10, Columns=10))
    jpeg_2000 = bytearray(imagecodecs.jpeg2k_encode(values, codecformat="j2k"))
    place = jpeg_2000.index(b"\xff\x51") + 6
    struct.pack_into(">II", jpeg_2000, place, 60_000, 60_000)
    assert "more tiles" in refused(compressed(JPEG_2000, bytes(jpeg_2000), Rows=10, Columns=10))
    struct.pack_into(">II", jpeg_2000, place + 16, 60_000, 60_000)
    assert "60000 x 60000" in refused(compressed(JPEG_2000, bytes(jpeg_2000), Rows=10, Columns=10))


def test_run_lengths_that_do_not_end_at_the_picture_are_refused():
    header = struct.pack("<16I", 1, 64, *[0] * 14)
    for runs in (b"\x81\x07" * 2000, b"\x81\x07" * 2, b"", b"\x7f"):
        reason = refused(compressed(RLE, header + runs, Rows=20, Columns=20))
        assert reason.startswith("damaged or unsupported DICOM: RLE")


def test_deflated_bombs_are_refused_before_memory_is_taken():
    plain = dicom(np.arange(16, dtype=np.uint8).reshape(4, 4))
    body = plain[plain.index(b"\x08\0\x16\0UI") :]
    start = body.index(b"\xe0\x7f\x10\0OW")
    meta = dicom(np.zeros((4, 4), np.uint8), syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    meta = meta[: 132 + 12 + struct.unpack_from("<I", meta, 140)[0]]

    def deflated(content: bytes) -> bytes:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        return meta + packer.compress(content) + packer.flush()

    assert outcomes(deflated(body)) == ["picture"]
    bomb = body[: start + 8] + struct.pack("<I", 100_000_000) + bytes(100_000_000)
    assert refused(deflated(bomb)).startswith("too large: its pixels inflate to 100000000 bytes")
    many = body[:start] + b"\x09\0\x01\0UN\0\0" + struct.pack("<I", 100_000_000) + bytes(100_000_000)
    assert "pixels" in refused(deflated(many))
    header = body[: start + 8] + struct.pack("<I", 0xFFFFFFFF) + bytes(100_000_000)
    assert "damaged" in refused(deflated(header))


def test_palettes_that_expand_without_end_are_refused():
    words = np.array([0, 1, 5, *[1, 65535, 9] * 50_000], np.uint16)
    attributes: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        attributes[f"Segmented{colour}PaletteColorLookupTableData"] = words.tobytes()
    begun = time.perf_counter()
    outcomes(dicom(np.arange(16, dtype=np.uint8).reshape(4, 4), **attributes))
    repeats = np.array([0, 1, 5, *[2, 65535, 3, 0] * 50_000], np.uint16).tobytes()
    for colour in ("Red", "Green", "Blue"):
        attributes[f"Segmented{colour}PaletteColorLookupTableData"] = repeats
    assert "palette" in refused(dicom(np.arange(16, dtype=np.uint8).reshape(4, 4), **attributes))
    assert time.perf_counter() - begun < 10


def test_sequences_nested_without_end_are_refused():
    item = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    data = dicom(np.arange(16, dtype=np.uint8).reshape(4, 4))
    start = data.index(b"\x08\0\x16\0UI")
    refused(data[:start] + item * 20_000)


def test_a_million_empty_fragments_are_refused():
    value = b"\xfe\xff\0\xe0\0\0\0\0" * 1_000_002
    (reason,) = outcomes(dicom(value, syntax=pydicom.uid.UID(JPEG_LS), Rows=4, Columns=4, **BITS_8))
    assert reason == "too large: pixels in more than 1000000 fragments"


def test_video_and_private_syntaxes_are_named():
    video = compressed("1.2.840.10008.1.2.4.102", b"\0\0\0\1", Rows=4, Columns=4)
    assert refused(video) == "unsupported DICOM: transfer syntax MPEG-4 AVC/H.264 High Profile / Level 4.1"
    known = compressed(JPEG_LS, b"\0\0\0\1", Rows=4, Columns=4)
    private = known.replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.99999.1.2.4.80")
    assert refused(private) == "unsupported DICOM: transfer syntax a private one"


def test_a_lack_of_memory_is_told_as_such(monkeypatch):
    data = (WHEEL / "MR_small_jp2klossless.dcm").read_bytes()

    def exhausted(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(imagecodecs, "jpeg2k_decode", exhausted)
        assert outcomes(data) == ["out of memory: 64 x 64 pixels"]
    monkeypatch.setattr("fastfgssl.archive.dicom.header.read_dataset", exhausted)
    assert outcomes(data)[0].startswith("out of memory")


CUT = [
    "CT_small.dcm",
    "JPGExtended.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_jpeg_lossy_gdcm.dcm",
    "image_dfl.dcm",
]


@pytest.mark.parametrize("name", CUT)
def test_files_cut_short_anywhere_give_a_reason(name):
    data = (WHEEL / name).read_bytes()
    whole = read(data).picture.tobytes()
    for end in [*range(0, len(data), max(1, len(data) // 100)), *range(len(data) - 40, len(data))]:
        for outcome in outcomes_or_pictures(data[:end]):
            # without the padding of fragments or their delimiter nothing is lost; never is less than all shown
            assert isinstance(outcome, str) or outcome.picture.tobytes() == whole, end


def outcomes_or_pictures(data: bytes) -> list[str | DicomPicture]:
    try:
        return [o if isinstance(o, DicomPicture) else checked(o) for o in read_dicom(data, SETTINGS)]
    except NoImage as kind:
        return [str(kind)]


def mutated(data: bytes, dice: random.Random) -> bytes:
    """With some bytes changed, a piece cut off or put in, or a length that is anything."""
    result = bytearray(data)
    kind = dice.choice(["bytes", "cut", "insert", "length"])
    if kind == "cut":
        return bytes(result[: dice.randrange(len(result))])
    if kind == "bytes":
        for _ in range(dice.choice([1, 3, 20])):
            result[dice.randrange(min(len(result), dice.choice([2000, 10**9])))] = dice.randrange(256)
    elif kind == "insert":
        into, piece = dice.randrange(len(result)), dice.randrange(len(result))
        result[into:into] = result[piece : piece + dice.randrange(1, 300)]
    else:
        where = dice.randrange(128, min(len(result) - 4, 3000))
        result[where : where + 4] = dice.choice(
            [b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f", b"\xff\xff", bytes(2)]
        )
    return bytes(result)


@pytest.mark.parametrize("seed", range(0, 300, 30))
def test_mutations_end_in_pictures_or_reasons(seed):
    for number in range(seed, seed + 30):
        dice = random.Random(number)
        data = mutated(dice.choice(FILES).read_bytes(), dice)
        settings = DicomSettings(
            frames=dice.choice(["middle", "all", "every:3"]),
            depth=dice.choice([8, 16]),
            window=dice.choice(["header", "percentiles", "40/400"]),
            max_pixels=4_000_000,
            max_bytes=64_000_000,
        )
        begun = time.process_time()
        assert outcomes(data, settings), number
        assert time.process_time() - begun < 5, number
