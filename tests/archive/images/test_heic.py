"""HEIC: upright, the primary picture, with all its bits and nothing but pixels."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest

from fastfgssl.archive.outcome import Unusable
from helpers.heic import FILES, picture
from helpers.images import DECODER, run


def shown(name: str) -> np.ndarray:
    return DECODER.decode(run(FILES[name]).data).astype(np.int64)


def near(pixels: np.ndarray, wanted: np.ndarray) -> bool:
    """Up to what the codec loses."""
    return pixels.shape == wanted.shape and np.abs(pixels - wanted).mean() < 3


def test_a_picture_of_a_phone():
    image = run(FILES["plain"])
    assert (image.format, image.bit_depth, image.changes) == ("png", 8, ("HEIC was encoded anew",))
    assert near(shown("plain"), picture())
    assert near(shown("gray"), picture()[..., :1].repeat(3, axis=2))


def test_it_is_turned_once_and_its_metadata_stay_behind():
    assert near(shown("turned"), np.rot90(picture(), -1))
    assert b"Jane Doe" in FILES["turned"]
    assert b"Jane Doe" not in run(FILES["turned"]).data


def test_ten_bits_are_kept():
    image = run(FILES["ten"])
    assert (image.bit_depth, image.levels) == (16, (0, 1023))
    stored = DECODER.decode(image.data, np.uint16) / 1023
    assert np.abs(stored - picture() / 255).mean() < 0.01
    assert len(np.unique(np.round(stored * 1023) % 4)) > 1  # more than 8 bits of them


def test_of_several_pictures_the_primary_one_is_taken():
    image = run(FILES["several"])
    assert near(shown("several"), picture())
    assert image.notes == ("only the first of several pages or frames is used",)


def test_sizes_are_refused_before_decoding():
    with pytest.raises(Unusable, match=r"^too large: 48 x 32 pixels, --max-pixels is 100$"):
        run(FILES["plain"], max_pixels=100)
    data = bytearray(FILES["plain"])
    struct.pack_into(">II", data, data.index(b"ispe") + 8, 60_000, 60_000)
    with pytest.raises(Unusable, match=r"^(too large: 60000 x 60000|damaged or unsupported HEIC)"):
        run(bytes(data))


def test_rows_are_not_joined_beyond_their_memory():
    """Its header says 11 bits, its picture has 8: the library writes rows twice as long as the memory that it has."""
    data = bytearray(FILES["gray"])
    bits = data.index(b"\xfc\xfc\xf8\xf8") + 2
    data[bits] = 0xF8 + 3
    wanted = r"^damaged or unsupported HEIC: 48 x 32 pixels of 16 bits are decoded to fewer$"
    with pytest.raises(Unusable, match=wanted):
        run(bytes(data))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_what_is_cut_off_is_refused(share):
    data = FILES["plain"]
    with pytest.raises(Unusable, match=r"^damaged or unsupported HEIC"):
        run(data[: int(share * len(data))])


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(Unusable, match=r"^unsupported format: HEIC; pip install 'fastfgssl\[heic\]' to read it"):
        run(FILES["plain"])
