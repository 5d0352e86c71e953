"""Modality values, windows, padding and inversion, with values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from fastfgssl.archive.dicom.pictures import DicomSettings
from fastfgssl.archive.outcome import Unusable
from fastfgssl.runtime.errors import UserError
from helpers.dicom import dicom, read, shown, windowed


def row(*values: int, dtype: type = np.uint16) -> np.ndarray:
    return np.array([values], dtype)


def table(first: int, bits: int, entries: list[int], meaning: str = "3006") -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    item.add_new(0x00283006, "US", entries)
    return item


def test_the_linear_window_is_the_standards():
    # PS3.3 C.11.2.1.2.1: center 2048, width 4096 maps 0 to black and 4095 to white
    pixels = row(0, 1, 2047, 2048, 4094, 4095, 5000)
    result = shown(dicom(pixels, WindowCenter=2048, WindowWidth=4096))
    assert result.tolist() == [[0, 0, 127, 128, 255, 255, 255]]


def test_linear_exact_and_sigmoid():
    pixels = row(0, 25, 50, 75, 100)
    exact = shown(dicom(pixels, WindowCenter=50, WindowWidth=100, VOILUTFunction="LINEAR_EXACT"))
    assert exact.tolist() == [[0, 64, 128, 191, 255]]  # 63.75, 127.5, 191.25
    sigmoid = shown(dicom(pixels, WindowCenter=50, WindowWidth=100, VOILUTFunction="SIGMOID"))
    assert sigmoid.tolist() == [[30, 69, 128, 186, 225]]  # 255 / (1 + e^2), 255 / (1 + e), 127.5, ...


def test_a_window_of_one_value_is_a_threshold():
    data = dicom(row(9, 10, 11), WindowCenter=10, WindowWidth=1)
    assert shown(data).tolist() == [[0, 255, 255]]  # white above 9.5
    assert windowed(read(data, depth=16)).tolist() == [[0, 255, 255]]
    assert windowed(read(dicom(row(9, 10, 2**31, dtype=np.uint32), WindowCenter=10, WindowWidth=1), depth=16)).any()


def test_slope_and_intercept_come_before_the_window():
    pixels = row(-600, 1000, 1400, dtype=np.int16)  # -1324, -524, -324 Hounsfield units
    data = dicom(pixels, RescaleSlope="0.5", RescaleIntercept="-1024", WindowCenter=-523.5, WindowWidth=401)
    assert shown(data).tolist() == [[0, 128, 255]]  # black at -724, white at -324


def test_of_several_windows_the_first_is_taken():
    data = dicom(row(0, 50, 100, 1000), WindowCenter=[50.5, 500], WindowWidth=[101, 1000])
    assert shown(data).tolist() == [[0, 128, 255, 255]]


@pytest.mark.parametrize("width", ["0", "-5", "0.5"])
def test_a_window_that_is_none_is_passed_over(width):
    ramp = np.arange(1000, dtype=np.uint16).reshape(10, 100)
    assert np.array_equal(shown(dicom(ramp, WindowCenter=5, WindowWidth=width)), shown(dicom(ramp)))


def test_a_voi_table_goes_before_a_window():
    item = table(10, 8, [0, 100, 200, 255])
    data = dicom(row(0, 10, 11, 12, 13, 99), VOILUTSequence=[item], WindowCenter=1, WindowWidth=2)
    assert shown(data).tolist() == [[0, 0, 100, 200, 255, 255]]
    picture = read(data, depth=16)  # a curve cannot be told by two levels: it is applied
    assert np.asarray(picture.picture).tolist() == [[0, 0, 25700, 51400, 65535, 65535]]
    assert picture.levels == (0, 65535)


def test_a_modality_table_goes_before_slope_and_intercept():
    item = table(0, 16, [0, 10, 20, 30])
    data = dicom(row(0, 1, 2, 3, 9), ModalityLUTSequence=[item], WindowCenter=15.5, WindowWidth=31, RescaleSlope=9)
    assert shown(data).tolist() == [[0, 85, 170, 255, 255]]


def test_a_table_that_is_cut_short_is_passed_over():
    item = table(0, 16, [0, 10])
    item[0x00283002].value = [4, 0, 16]
    data = dicom(row(0, 5, 10), VOILUTSequence=[item], WindowCenter=5.5, WindowWidth=11)
    assert shown(data).tolist() == [[0, 128, 255]]


def test_without_a_window_a_ct_in_hounsfield_units_shows_soft_tissue():
    pixels = row(0, 864, 1064, 1263, 3000)  # -1024, -160, 40, 239 and 1976 Hounsfield units
    data = dicom(pixels, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    assert shown(data).tolist() == [[0, 0, 128, 255, 255]]
    assert np.array_equal(shown(data), shown(data, window="40/400"))
    other = dicom(pixels, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024, RescaleType="US")
    assert np.array_equal(shown(other), shown(other, window="percentiles"))
    assert not np.array_equal(shown(other), shown(data))


def test_without_a_window_other_modalities_show_their_percentiles():
    pixels = np.arange(1000, dtype=np.uint16).reshape(25, 40)
    low, high = np.percentile(pixels, [0.5, 99.5], method="inverted_cdf")
    assert (low, high) == (4, 994)
    expected = np.floor((pixels - 4.0).clip(0, 990) / 990 * 255 + 0.5)
    assert np.array_equal(shown(dicom(pixels)), expected)
    assert np.array_equal(shown(dicom(pixels, WindowCenter=1, WindowWidth=2), window="percentiles"), expected)
    assert not np.array_equal(shown(dicom(pixels), window="40/400"), expected)


def test_percentiles_that_meet_give_way_to_the_whole_range():
    pixels = np.zeros((100, 100), np.uint16)
    pixels[5, 5:8] = 10, 20, 30
    assert shown(dicom(pixels))[5, 4:9].tolist() == [0, 85, 170, 255, 0]


@given(st.integers(0, 2**32), st.sampled_from([np.uint8, np.uint16, np.int16]), st.integers(1, 300))
@settings(max_examples=50)
def test_percentiles_are_those_of_the_modality_values(seed, dtype, pixels):
    random = np.random.default_rng(seed)
    values = random.integers(0, 100, (1, pixels + 1)).astype(dtype)
    values[0, 0] = 101
    slope = random.choice([-2.5, 0.25, 3])
    low, high = np.percentile(values * slope, [0.5, 99.5], method="inverted_cdf")
    if low == high:
        low, high = (values * slope).min(), (values * slope).max()
    expected = np.floor(((values * slope - low) / (high - low)).clip(0, 1) * 255 + 0.5)
    result = shown(dicom(values, RescaleSlope=str(slope), RescaleIntercept="0"))
    assert np.array_equal(result, expected)


def test_padding_is_black_and_counts_for_nothing():
    body = np.arange(1000, 2000, dtype=np.int16).reshape(25, 40)
    padded = np.concatenate([np.full((25, 40), -2000, np.int16), body])
    alone, both = shown(dicom(body)), shown(dicom(padded, PixelPaddingValue=-2000))
    assert np.array_equal(both[25:], alone)
    assert not both[:25].any()
    ranged = padded.copy()
    ranged[:10] = -1990
    data = dicom(ranged, PixelPaddingValue=-1990, PixelPaddingRangeLimit=-2000)
    assert np.array_equal(shown(data), both)
    inverted = shown(dicom(padded, PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted[25:], 255 - alone)
    assert not inverted[:25].any()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_at_16_bits_too(photometric):
    body = np.arange(1000, 2000, dtype=np.int16).reshape(25, 40)
    padded = np.concatenate([np.full((25, 40), -2000, np.int16), body])
    data = dicom(
        padded, PixelPaddingValue=-2000, PhotometricInterpretation=photometric, WindowCenter=0, WindowWidth=9999
    )
    assert (windowed(read(data, depth=16))[:25] == 0).all()
    assert np.abs(windowed(read(data, depth=16)) - shown(data)).max() <= 0.55


def test_monochrome1_is_inverted():
    pixels = row(0, 5, 10)
    attributes = {"WindowCenter": 5.5, "WindowWidth": 11}
    plain = shown(dicom(pixels, **attributes))
    assert np.array_equal(shown(dicom(pixels, PhotometricInterpretation="MONOCHROME1", **attributes)), 255 - plain)


def test_16_bits_keep_each_modality_value_and_tell_the_window():
    pixels = row(-1024, -160, 40, 239, 3071, dtype=np.int16)
    picture = read(dicom(pixels, Modality="CT", RescaleSlope=1, RescaleIntercept=0), depth=16)
    assert picture.picture.mode == "I;16"
    assert np.asarray(picture.picture).tolist() == [[31744, 32608, 32808, 33007, 35839]]  # + 32768
    assert picture.levels == (32608, 33007)  # -160 and 239 Hounsfield units
    assert np.asarray(picture.picture).dtype == np.uint16


def test_slices_of_a_series_have_the_same_levels():
    attributes = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 2, "RescaleIntercept": -1000, "Modality": "CT"}
    one = read(dicom(row(0, 500, 600), **attributes), depth=16)
    other = read(dicom(row(300, 500, 4000), **attributes), depth=16)
    assert one.levels == other.levels == (420, 620)  # (-160 + 1000) / 2, (239 + 1000) / 2 rounded up
    assert np.asarray(one.picture)[0, 1] == np.asarray(other.picture)[0, 1] == 500


@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32]),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    slope=st.sampled_from([1, -1, 0.5, 3.7]),
    window=st.sampled_from(["header", "percentiles", "100/50"]),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
@settings(max_examples=150)
def test_16_bits_through_their_levels_are_the_8_bit_picture(seed, dtype, photometric, slope, window, function):
    random = np.random.default_rng(seed)
    pixels = random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (9, 11), dtype, endpoint=True)
    pixels[:5] = random.integers(0, 128, (5, 11))
    width = float(random.integers(200, 70_000))
    data = dicom(
        pixels,
        PhotometricInterpretation=photometric,
        RescaleSlope=str(slope),
        RescaleIntercept=str(random.integers(-2000, 2000)),
        WindowCenter=str(random.integers(-100, 300)),
        WindowWidth=str(width),
        VOILUTFunction=function,
    )
    try:
        eight = shown(data, window=window)
    except Unusable:  # of a window that shows nothing
        return
    sixteen = read(data, window=window, depth=16)
    low, high = sixteen.levels
    assert 0 <= low < high <= 65535
    step = 255 / (high - low)  # both ends and the value are rounded to whole levels
    assert np.abs(windowed(sixteen) - eight).max() <= 0.51 + 1.5 * step


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_span_all_levels_and_what_is_no_number_is_black(dtype):
    values = np.array([[0.0, 0.25, 1.0, np.nan, np.inf, -7.0]], dtype)
    padding = {np.float32: "FloatPixelPaddingValue", np.float64: "DoubleFloatPixelPaddingValue"}[dtype]
    data = dicom(values, **{padding: -7.0})
    assert shown(data, window="percentiles").tolist() == [[0, 64, 255, 0, 0, 0]]
    picture = read(data, window="percentiles", depth=16)
    assert np.asarray(picture.picture).tolist() == [[0, 16384, 65535, 0, 0, 0]]
    assert picture.levels == (0, 65535)


@pytest.mark.parametrize("depth", [8, 16])
def test_constant_pictures_are_refused(depth):
    with pytest.raises(Unusable, match=r"^constant: all pixels but padding are alike$"):
        read(dicom(np.full((8, 8), 77, np.uint16)), depth=depth)
    with pytest.raises(Unusable, match=r"^constant: all pixels are alike$"):
        read(dicom(np.full((8, 8, 3), 77, np.uint8)), depth=depth)
    with pytest.raises(Unusable, match=r"^constant: all pixels but padding are alike$"):  # but for what is no picture
        read(dicom(row(5, 5, 0), PixelPaddingValue=0), depth=depth)
    with pytest.raises(Unusable, match=r"^constant: the window from 20.5 to 29.5 shows nothing of it$"):
        read(dicom(row(5, 6, 7), WindowCenter=25.5, WindowWidth=10), depth=depth)


WRONG = ["frames=every:0", "frames=first", "window=40", "window=40/0", "window=a/b", "window=nan/9", "depth=12"]


@pytest.mark.parametrize("wrong", WRONG)
def test_settings_that_mean_nothing_are_refused(wrong):
    name, value = wrong.split("=")
    with pytest.raises(UserError, match=f"^{name}: .*{value}"):
        DicomSettings(**{name: int(value) if name == "depth" else value})
