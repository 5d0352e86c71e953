"""Whatever a file holds, it ends in an image that training can decode, or in a reason that one can read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastfgssl.archive.outcome import Unusable
from helpers.images import DECODER, REAL_DATA, RGB, encode, gradient, real_data, run

REFUSED = {
    "empty file": b"",
    "not the image but a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "not a JPEG, PNG, TIFF, BMP or WebP file": b"<!DOCTYPE html><html>not found</html>",
    "damaged or unsupported PNG": b"\x89PNG\r\n\x1a\nrubbish",
    "damaged or unsupported JPEG": b"\xff\xd8\xff" + bytes(100),
    "damaged or unsupported WEBP": b"RIFF\0\0\0\0WEBPVP8 ",
    "pixels are 32-bit floats": encode(RGB.convert("L").convert("F"), "TIFF"),
    "pixels do not fit in 16 bits: they lie in -5 to": encode(
        Image.fromarray(np.arange(-5, 95, dtype=np.int32).reshape(10, 10)), "TIFF"
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_usable_image_is_refused_with_a_reason(reason):
    with pytest.raises(Unusable) as refusal:
        run(REFUSED[reason])
    assert str(refusal.value).startswith(reason)
    assert "\n" not in str(refusal.value)
    assert "object at 0x" not in str(refusal.value)


def test_claimed_size_is_refused_before_decoding():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = bytearray(encode(RGB, "PNG"))
    data[16:29] = header
    data[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(Unusable, match=r"^too large: 60000 x 60000 pixels, --max-pixels is 100000000$"):
        run(bytes(data))
    assert run(encode(RGB, "PNG"), max_pixels=61 * 47)
    with pytest.raises(Unusable, match="too large: 61 x 47"):
        run(encode(RGB, "PNG"), max_pixels=61 * 47 - 1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(format, share):
    data = encode(gradient(200, 150), format)
    with pytest.raises(Unusable, match=r"^damaged or unsupported"):
        run(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata
@settings(deadline=None, max_examples=60)
@given(data=st.data(), format=st.sampled_from(["JPEG", "PNG", "TIFF", "BMP", "WEBP"]))
def test_damage_ends_in_an_image_for_training_or_a_refusal(data, format):
    damaged = bytearray(encode(RGB, format))
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        image = run(bytes(damaged), max_pixels=10**6)
    except Unusable:
        return
    assert DECODER.decode(image.data).shape == (image.height, image.width, 3)


@real_data
def test_real_odd_files():
    refused = {}
    for path in sorted(Path(REAL_DATA, "odd").iterdir()):
        try:
            run(path.read_bytes())
        except Unusable as refusal:
            refused[path.name] = str(refusal)
    assert refused.keys() == {
        "broken.png",
        "empty.jpg",
        "lfs_pointer.png",
        "monkey12.jpg",
        "png_decompression_dos.png",
        "truncated_image.png",
        "truncated_jpeg.jpg",
        "unknown_compression_method.png",
    }
    assert refused["monkey12.jpg"] == "damaged or unsupported JPEG: cannot handle 12-bit layers"
