"""How pixels are stored: bits, signs, colours, frames, fragments and codecs, with values worked out by hand."""

from __future__ import annotations

import pickle

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended

from fastfgssl.archive.dicom.pictures import DicomPicture, DicomSettings, looks_like_dicom, read_dicom
from fastfgssl.archive.outcome import Unusable
from helpers.dicom import dataset, dicom, encoded, read, shown, stored_values

RANDOM = np.random.default_rng(5)
JPEG, JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{number}" for number in (50, 70, 80, 90))
HTJ2K, RLE = "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.5"


def smooth(*shape: int, top: int = 255) -> np.ndarray:
    """A picture without symmetry that lossy codecs keep well, with each value from 0 to `top`."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    planes = [x / shape[1], y / shape[0], (x + y) / (shape[0] + shape[1])][: shape[2] if len(shape) > 2 else 1]
    return np.rint(np.stack(planes, axis=-1).squeeze() * top)


def compressed(pixels: np.ndarray, syntax: str, frames: list[bytes], **attributes: object) -> bytes:
    plain = dataset(pixels)
    keep = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit")
    described = {name: plain[name].value for name in (*keep, "PixelRepresentation") if name in plain}
    if len(frames) > 1:
        described["NumberOfFrames"] = len(frames)
    return dicom(encapsulate(frames), syntax=pydicom.uid.UID(syntax), **described | attributes)


def test_bits_that_do_not_count_are_left_out():
    values = np.array([[0, 1, 500, 1023]], np.uint16)
    overlays = np.array([[0xF003, 0x8002, 0x4001, 0x0000]], np.uint16)  # above and below
    data = dicom((values << 2 | overlays).astype(np.uint16), BitsStored=10, HighBit=11)
    assert stored_values(data).tolist() == values.tolist()
    assert shown(data, window="512/1023").tolist() == shown(dicom(values), window="512/1023").tolist()


def test_the_sign_is_in_the_highest_stored_bit():
    values = np.array([[0x0800, 0x0FFF, 0, 1, 0x07FF]], np.uint16)  # of 12 bits
    data = dicom(values, BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert stored_values(data).tolist() == [[-2048, -1, 0, 1, 2047]]
    assert stored_values(dicom(values | 0xA000, BitsStored=12, HighBit=11, PixelRepresentation=1)).min() == -2048


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_big_endian_files_read_as_little_endian_ones(bits):
    values = RANDOM.integers(0, 2**bits, (5, 6), np.uint64).astype(f"u{bits // 8}")
    swapped = values.byteswap() if bits > 8 else values.view(np.uint16).byteswap().view(np.uint8)
    little = dicom(values)
    big = dataset(values, syntax=pydicom.uid.ExplicitVRBigEndian)
    big.PixelData = swapped.tobytes()
    assert np.array_equal(stored_values(encoded(big)), values)
    assert np.array_equal(shown(encoded(big)), shown(little))


def test_single_bits_are_unpacked_frame_by_frame():
    frames = RANDOM.integers(0, 2, (3, 3, 5)).astype(np.uint8)  # 15 bits each: frames begin within bytes
    packed = np.packbits(frames.ravel(), bitorder="little").tobytes()
    attributes = {
        "Rows": 3,
        "Columns": 5,
        "NumberOfFrames": 3,
        "SamplesPerPixel": 1,
        "BitsAllocated": 1,
        "BitsStored": 1,
    }
    data = dicom(packed, PhotometricInterpretation="MONOCHROME2", HighBit=0, **attributes)
    for number, frame in enumerate(frames):
        assert np.array_equal(stored_values(data, number), frame)


def test_planes_and_pixels_of_colour_are_the_same_picture():
    colours = RANDOM.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    planes = dataset(colours, PlanarConfiguration=1)
    planes.PixelData = colours.transpose(2, 0, 1).tobytes()
    assert np.array_equal(shown(dicom(colours)), colours)
    assert np.array_equal(shown(encoded(planes)), colours)


def test_colour_of_16_bits_becomes_8_bit_and_says_so():
    colours = RANDOM.integers(0, 4096, (4, 6, 3)).astype(np.uint16)
    picture = read(dicom(colours, BitsStored=12, HighBit=11))
    assert np.array_equal(np.asarray(picture.picture), colours >> 4)
    assert picture.notes == ("16-bit colour became 8-bit",)


# luminance and chrominance of black, white, gray, red, green and blue (CCIR 601)
YBR = {
    "YBR_FULL_422": [(0, 128, 128), (255, 128, 128), (77, 128, 128), (76, 85, 255), (150, 44, 21), (29, 255, 107)],
    "YBR_PARTIAL_422": [(16, 128, 128), (235, 128, 128), (82, 128, 128), (81, 90, 240), (145, 54, 34), (41, 240, 110)],
}
PRIMARIES = [(0, 0, 0), (255, 255, 255), (77, 77, 77), (255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_luminance_and_chrominance_become_rgb():
    data = dicom(np.array([YBR["YBR_FULL_422"]], np.uint8), PhotometricInterpretation="YBR_FULL")
    assert np.abs(shown(data).astype(int) - [PRIMARIES]).max() <= 2


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_PARTIAL_422"])
def test_chrominance_of_every_second_pixel(photometric):
    pairs = b"".join(bytes((y, y, cb, cr)) for y, cb, cr in YBR[photometric])
    attributes = {"Rows": 2, "Columns": 6, "SamplesPerPixel": 3, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    data = dicom(pairs, PhotometricInterpretation=photometric, PlanarConfiguration=0, **attributes)
    expected = np.repeat(np.array(PRIMARIES), 2, axis=0).reshape(2, 6, 3)
    assert np.abs(shown(data).astype(int) - expected).max() <= 2


def palette(first: int = 0, bits: int = 16, **attributes: object) -> dict[str, object]:
    result: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, factor in (("Red", 1), ("Green", 2), ("Blue", 3)):
        entries = np.array([10, 20, 30, 40]) * factor
        result[f"{colour}PaletteColorLookupTableDescriptor"] = [4, first, bits]
        stored = entries.astype(np.uint8) if bits == 8 else (entries << 8).astype(np.uint16)
        result[f"{colour}PaletteColorLookupTableData"] = stored.tobytes()
    return result | attributes


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_of_8_and_16_bits(bits):
    index = np.array([[0, 1, 2, 3, 9]], np.uint8)
    expected = [[[10, 20, 30], [20, 40, 60], [30, 60, 90], [40, 80, 120], [40, 80, 120]]]
    assert shown(dicom(index, **palette(bits=bits))).tolist() == expected
    assert shown(dicom(index + 7, **palette(first=7, bits=bits))).tolist() == expected


def test_segmented_palettes_are_expanded():
    # two entries, a ramp of two more to 40, then both segments once again: 10 20 30 40 10 20 30 40
    words = np.array([0, 2, 10 << 8, 20 << 8, 1, 2, 40 << 8, 2, 2, 0, 0], np.uint16)
    attributes: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [8, 0, 16]
        attributes[f"Segmented{colour}PaletteColorLookupTableData"] = words.tobytes()
    result = shown(dicom(np.arange(8, dtype=np.uint8)[None], **attributes))
    assert result[0, :, 0].tolist() == [10, 20, 30, 40, 10, 20, 30, 40]


def test_frames_are_chosen_and_named():
    frames = np.stack([np.arange(8, dtype=np.uint16).reshape(2, 4) + 100 * number for number in range(5)])
    data = dicom(frames)

    def parts(which: str) -> dict[str, float]:
        pictures = read_dicom(data, DicomSettings(frames=which, window="250/500"))
        return {picture.part: np.asarray(picture.picture).mean() for picture in pictures}

    assert list(parts("middle")) == ["frame 3"]
    assert list(parts("every:2")) == ["frame 1", "frame 3", "frame 5"]
    assert list(parts("all")) == [f"frame {number}" for number in range(1, 6)]
    assert np.allclose(np.diff(list(parts("all").values())), 51, atol=0.5)
    assert read(dicom(frames[:1])).part == ""


def test_a_frame_that_is_constant_or_missing_costs_no_other():
    frames = RANDOM.integers(0, 1000, (4, 6, 8)).astype(np.uint16)
    frames[1] = 5
    cut = dicom(frames)[: -6 * 8 * 2 - 7]
    first, second, rest = read_dicom(cut, DicomSettings(frames="all"))
    assert isinstance(first, DicomPicture)
    assert (str(second), second.part) == ("constant: all pixels but padding are alike", "frame 2")
    assert (str(rest), rest.part) == ("damaged or unsupported DICOM: cut short: 2 of 4 frames", "frame 3")
    assert pickle.loads(pickle.dumps(rest)).part == "frame 3"  # as a worker sends it


def test_an_enhanced_object_has_values_for_each_frame():
    frames = np.stack([np.array([[0, 50, 100, 100]], np.uint16)] * 2)
    groups = []
    for slope in (1, 2):
        group, measure, values, window = Dataset(), Dataset(), Dataset(), Dataset()
        measure.PixelSpacing = [slope, slope]
        values.RescaleSlope, values.RescaleIntercept = slope, 0
        group.PixelMeasuresSequence, group.PixelValueTransformationSequence = [measure], [values]
        groups.append(group)
    window.WindowCenter, window.WindowWidth = 100.5, 201
    shared = Dataset()
    shared.FrameVOILUTSequence = [window]
    attributes = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": groups}
    one, two = read_dicom(dicom(frames, **attributes), DicomSettings(frames="all"))
    assert np.asarray(one.picture).tolist() == [[0, 64, 128, 128]]
    assert np.asarray(two.picture).tolist() == [[0, 128, 255, 255]]
    assert (one.facts.spacing_row, two.facts.spacing_row) == (1, 2)


LOSSLESS = {
    "JPEG lossless": (
        JPEG_LOSSLESS,
        lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=8 * a.itemsize),
    ),
    "JPEG-LS": (JPEG_LS, imagecodecs.jpegls_encode),
    "JPEG 2000": (JPEG_2000, lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k", reversible=True)),
    "HTJ2K": (HTJ2K, lambda a: imagecodecs.htj2k_encode(a, reversible=True)),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("codec", LOSSLESS)
def test_lossless_codecs_give_what_went_in(codec, dtype):
    syntax, encode = LOSSLESS[codec]
    values = RANDOM.integers(0, np.iinfo(dtype).max, (23, 37), dtype)
    data = compressed(values, syntax, [encode(values)])
    assert np.array_equal(stored_values(data), values)
    if codec == "HTJ2K":  # which GDCM does not read: OpenJPEG beside OpenJPH
        assert np.array_equal(imagecodecs.jpeg2k_decode(encode(values)), values)
    signed = compressed(values, syntax, [encode(values)], PixelRepresentation=1)
    assert np.array_equal(stored_values(signed), values.view(np.dtype(dtype).str.replace("u", "i")))


@pytest.mark.parametrize("codec", ["JPEG-LS", "JPEG 2000", "HTJ2K"])
def test_lossless_codecs_of_colour(codec):
    syntax, encode = LOSSLESS[codec]
    values = RANDOM.integers(0, 256, (23, 37, 3)).astype(np.uint8)
    assert np.array_equal(shown(compressed(values, syntax, [encode(values)])), values)


def test_12_bit_jpeg_is_decoded():
    values = smooth(40, 48, top=4095).astype(np.uint16)
    frame = imagecodecs.jpeg8_encode(values, level=95, bitspersample=12)
    data = compressed(values, JPEG[:-2] + "51", [frame], BitsStored=12, HighBit=11)
    assert np.abs(stored_values(data).astype(int) - values).max() <= 40  # 1 % of the range
    narrow = compressed(values, JPEG, [frame], BitsAllocated=8, BitsStored=8, HighBit=7)
    with pytest.raises(Unusable, match="JPEG of 12 bits in a file of 8"):
        read(narrow)


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("table", ["none", "basic", "extended"])
def test_frames_are_found_whatever_table_there_is(table, fragments):
    values = RANDOM.integers(0, 4096, (4, 10, 12)).astype(np.uint16)
    frames = [imagecodecs.jpegls_encode(frame) for frame in values]
    if table == "extended":
        value, offsets, lengths = encapsulate_extended(frames)
        attributes = {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    else:
        value, attributes = encapsulate(frames, fragments_per_frame=fragments, has_bot=table == "basic"), {}
    data = pydicom.dcmread(pydicom.filebase.DicomBytesIO(compressed(values[0], JPEG_LS, frames, **attributes)))
    data.PixelData = value
    for number, frame in enumerate(values):
        assert np.array_equal(stored_values(encoded(data), number), frame)
    pictures = list(read_dicom(encoded(data)[: -len(frames[-1]) // 2], DicomSettings(frames="all")))
    assert [isinstance(picture, DicomPicture) for picture in pictures] == [True, True, True, False]


def test_a_file_without_preamble_or_meta_information_is_read():
    values = RANDOM.integers(0, 4096, (4, 10)).astype(np.uint16)
    data = dicom(values)
    assert np.array_equal(stored_values(data[132:]), values)
    body = data[data.index(b"\x08\0\x16\0UI") :]
    assert looks_like_dicom(body)
    assert np.array_equal(stored_values(body), values)
    assert not looks_like_dicom(b"\x89PNG\r\n\x1a\n" + bytes(200))
    assert not looks_like_dicom(b"")


def test_deflated_files_are_inflated():
    values = RANDOM.integers(0, 4096, (40, 100)).astype(np.uint16)
    data = dicom(values, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    assert values.tobytes() not in data
    assert np.array_equal(stored_values(data), values)


@pytest.mark.parametrize("depth", [8, 16])
def test_pixels_are_made_square(depth):
    values = smooth(30, 40, top=4095).astype(np.uint16)
    attributes = {"WindowCenter": 2048, "WindowWidth": 4096, "PixelSpacing": [1.5, 0.5]}
    picture = read(dicom(values, **attributes), depth=depth)
    assert picture.picture.size == (40, 90)
    assert picture.notes == ("pixels made square",)
    assert (picture.facts.spacing_row, picture.facts.spacing_column) == (0.5, 0.5)
    straight = read(dicom(values, WindowCenter=2048, WindowWidth=4096), depth=depth)
    assert np.abs(np.asarray(picture.picture)[1::3].astype(int) - np.asarray(straight.picture)).max() <= 2
    assert read(dicom(values, PixelAspectRatio=[1, 2])).picture.size == (80, 30)
    assert read(dicom(values, PixelSpacing=[1.0, 1.005])).notes == ()
    with pytest.raises(Unusable, match="too large: pixels of 1e-07 to 1 made square"):
        read(dicom(values, PixelAspectRatio=[1, 10_000_000]))
