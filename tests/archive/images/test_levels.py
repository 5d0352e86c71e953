"""Numbers of any type become levels, and a picture's range is one that its device has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastfgssl.archive.images.levels import BITS, ZERO, range_of, to_levels
from fastfgssl.archive.outcome import Unusable
from helpers.images import encode, gradient_16_bit, run
from helpers.names import png_chunk


@given(st.integers(0, 65535))
def test_range_is_the_smallest_that_holds_the_picture(highest):
    black, white = range_of(highest)
    assert black == 0
    assert white >= highest
    assert white + 1 in [1 << bits for bits in BITS]
    assert all((1 << bits) <= highest for bits in BITS if (1 << bits) - 1 < white)


def test_range_that_the_file_declares():
    assert range_of(900, declared_bits=12) == (0, 4095)  # of a dark picture, too
    assert range_of(4095, declared_bits=12) == (0, 4095)
    assert range_of(60_000, declared_bits=12) == (0, 65535)  # scaled to all 16 bits, as PNG's standard has it
    assert range_of(900, declared_bits=16) == (0, 65535)
    assert range_of(900, declared_bits=3) == (0, 65535)  # is none of a 16-bit picture's


@given(dtype=st.sampled_from(["u1", "u2", "<u2", ">u2", "i2", "i4", "u4", "f4", "f8"]), seed=st.integers(0, 99))
def test_whole_numbers_of_16_bits_keep_their_value(dtype, seed):
    high = 256 if dtype == "u1" else 30_000
    values = np.random.default_rng(seed).integers(0, high, (5, 7)).astype(dtype)
    levels = to_levels(values)
    assert levels.pixels.dtype == (np.uint8 if dtype == "u1" else np.uint16)
    assert np.array_equal(levels.pixels, values)
    assert levels.note == ""


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_ct_values_of_all_slices_keep_their_relation(dtype):
    lung, bone = (np.array([[-1000, 40], [0, top]], dtype) for top in (300, 3000))
    for values in (lung, bone):
        levels = to_levels(values)
        assert np.array_equal(levels.pixels.astype(int) - ZERO, values.astype(int))
        assert levels.note == "signed numbers: level = value + 32768"
        black, white = levels.range
        assert black <= levels.pixels.min()
        assert levels.pixels.max() <= white
        assert black + white == 2 * ZERO - 1  # 0 is the middle
    assert to_levels(lung).range == (ZERO - 1024, ZERO + 1023)
    assert to_levels(bone).range == (ZERO - 4096, ZERO + 4095)


def test_floats_between_0_and_1_have_one_scale():
    for values in (np.array([[0.25, 0.5]]), np.array([[0.25, 1.0]])):
        levels = to_levels(values.astype(np.float32))
        assert levels.pixels[0, 0] == 16384
        assert levels.note == "floats scaled to 16 bits: value = 0 + 1.5259e-05 x level"


@given(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=2, max_size=9), st.integers(-9, 9))
def test_scaled_floats_are_what_the_note_says(values, shift):
    values = np.array([[*values, 0.5 + shift]], np.float32)
    levels = to_levels(values)
    if levels.note.startswith("floats"):
        offset, slope = (float(part) for part in levels.note.split("value = ")[1].split(" x ")[0].split(" + "))
        span = max(1e-30, float(values.max()) - float(values.min()))
        assert np.abs(offset + slope * levels.pixels.astype(float) - values).max() <= 2e-5 * max(
            span, abs(values).max()
        )
        assert levels.range == (0, 65535)


def test_integers_beyond_16_bits_are_scaled():
    levels = to_levels(np.array([[-100_000, 0, 100_000]], np.int32))
    assert levels.pixels.tolist() == [[0, 32768, 65535]]
    assert levels.note.startswith("integers beyond 16 bits scaled to 16 bits: value = -100000 + ")


@pytest.mark.parametrize("dtype", ["bool", "u1", "u2", "i2", "f4"])
def test_white_is_zero_turns_the_picture(dtype):
    values = np.array([[0, 1, 0, 1]]) if dtype == "bool" else np.array([[0, 10, 100, 50]])
    values = values - 50 if dtype == "i2" else values / 70 if dtype == "f4" else values
    values = values.astype(dtype)
    straight, turned = to_levels(values), to_levels(values, white_is_zero=True)
    assert straight.range == turned.range
    black, white = turned.range
    difference = np.abs(turned.pixels.astype(int) - (black + white - straight.pixels.astype(int)))
    assert difference.max() <= (0 if dtype != "f4" else 1)


def test_what_is_no_number():
    values = np.array([[np.nan, 3.0, 5.0]], np.float32)
    levels = to_levels(values)
    assert levels.pixels.tolist() == [[3, 3, 5]]
    assert levels.note == "NaN became black"
    for bad in (np.inf, -np.inf):
        with pytest.raises(Unusable, match="pixels are infinite"):
            to_levels(np.array([[bad, 1.0]]))
    with pytest.raises(Unusable, match="no numbers at all"):
        to_levels(np.full((2, 2), np.nan))


def encode_16_bits(values: np.ndarray) -> bytes:
    return encode(Image.fromarray(values.astype(np.uint16)), "PNG")


@pytest.mark.parametrize(("bits", "highest", "white"), [(12, 4000, 4095), (12, 700, 4095), (10, 60_000, 65535)])
def test_significant_bits_of_a_png(bits, highest, white):
    pixels = np.asarray(gradient_16_bit()).astype(int)
    data = encode_16_bits(pixels * highest // pixels.max())
    place = data.index(b"IDAT") - 4
    image = run(data[:place] + png_chunk(b"sBIT", bytes([bits])) + data[place:])
    assert (image.levels, image.changes) == ((0, white), ())
    assert image.data == data
