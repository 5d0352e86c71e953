"""Whatever a file holds, it ends in an image that training can decode, or in a reason that one can read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastfgssl.archive.images import formats
from fastfgssl.archive.images.jpeg import read_jpeg
from fastfgssl.archive.outcome import Unusable
from helpers.images import DECODER, REAL_DATA, RGB, encode, gradient, real_data, run, run_all
from helpers.names import png_chunk

REFUSED = {
    "empty file": b"",
    "not the image but a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "not an image of a known format": b"<!DOCTYPE html><html>not found</html>",
    "damaged or unsupported PNG": b"\x89PNG\r\n\x1a\nrubbish",
    "damaged or unsupported JPEG": b"\xff\xd8\xff" + bytes(100),
    "damaged or unsupported WEBP": b"RIFF\0\0\0\0WEBPVP8 ",
    "damaged or unsupported JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "damaged or unsupported JPEG XL": b"\xff\x0a" + bytes(30),
    "damaged or unsupported GIF": b"GIF89a" + bytes(30),
    "damaged or unsupported HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "constant: all pixels are 7": encode(Image.new("L", (40, 30), 7), "PNG"),
    "constant: all pixels are 0, 135, 0": encode(Image.new("RGB", (40, 30), (0, 135, 0)), "PNG"),
    "constant: all pixels are 9": encode(Image.new("RGB", (40, 30), (9, 9, 9)), "JPEG"),
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


FORMATS = ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(format, share):
    data = encode(gradient(200, 150), format)
    with pytest.raises(Unusable, match=r"^damaged or unsupported"):
        run(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata
@settings(max_examples=150)
@given(data=st.data(), format=st.sampled_from(FORMATS))
def test_damage_ends_in_an_image_for_training_or_a_refusal(data, format):
    damaged = bytearray(encode(RGB, format))
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    for image in run_all(bytes(damaged), max_pixels=10**6):  # several, where damage makes pages
        if not isinstance(image, Unusable):
            assert DECODER.decode(image.data).shape == (image.height, image.width, 3)


def scrambled(data: bytes, start: float, filler: bytes) -> bytes:
    """A JPEG whose compressed bytes are `filler` from a share of it on, with its end marker."""
    place = int(len(data) * start)
    return data[:place] + filler * (len(data) - 2 - place) + data[-2:]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("start", [0.4, 0.7, 0.95])
def test_jpeg_that_was_not_copied_whole_is_refused(start, progressive):
    """As decoders read them: stripes, without a word."""
    data = encode(gradient(200, 150).effect_spread(30), "JPEG", progressive=progressive)
    cut = data[: int(len(data) * start)] + data[-2:]
    for damaged in (cut, scrambled(data, start, b"\0"), data[:-2]):
        with pytest.raises(Unusable, match=r"^damaged or unsupported JPEG: "):
            run(damaged)


def test_progressive_jpeg_without_its_last_scans_is_refused():
    data = encode(RGB, "JPEG", progressive=True)
    for place in [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"][1:]:
        with pytest.raises(Unusable, match="some of its scans are missing"):
            run(data[:place] + b"\xff\xd9")


def test_jpeg_of_hundreds_of_scans_is_refused_before_decoding():
    data = encode(RGB, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(Unusable, match=r"^too many scans: \d+ in a JPEG"):
        run(data[:-2] + data[last:-2] * 200 + data[-2:])


@pytest.mark.parametrize("kind", ["IDAT", "IHDR"])
def test_png_with_a_wrong_checksum_is_refused(kind):
    data = bytearray(encode(RGB, "PNG"))
    data[data.index(kind.encode()) + 12] ^= 1
    with pytest.raises(Unusable, match=f"the checksum of a chunk {kind} is wrong|its header is wrong|too large"):
        run(bytes(data))


def test_png_whose_chunks_are_right_but_pixels_are_missing():
    data = encode(RGB, "PNG")
    lines = zlib.decompress(data[data.index(b"IDAT") + 4 : data.rindex(b"IEND") - 8])
    head = data[: data.index(b"IDAT") - 4]
    for body in (zlib.compress(lines[:-100]), zlib.compress(lines)[:-2], zlib.compress(lines)[:-4] + b"abcd"):
        with pytest.raises(Unusable, match=r"PNG: (it is cut off|its compressed data are damaged)"):
            run(head + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b""))
    kept = run(head + png_chunk(b"IDAT", zlib.compress(lines)))  # whole, but for the mark of its end
    assert np.array_equal(DECODER.decode(kept.data), np.asarray(RGB))


def test_text_bombs_are_left_out_unread():
    data = encode(RGB, "PNG")
    place = data.index(b"IDAT") - 4
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**7)))
    assert run(data[:place] + bomb * 20 + data[place:]).data == data


def test_two_decoders_that_differ_are_a_reason(monkeypatch):
    for name in ("webp_decode", "tiff_decode"):
        monkeypatch.setattr(imagecodecs, name, lambda *data, **options: np.zeros((47, 61, 3), np.uint8))
    monkeypatch.setitem(formats._SECOND, "WEBP", imagecodecs.webp_decode)
    for format in ("WEBP", "TIFF"):
        with pytest.raises(Unusable, match=f"^two decoders differ on this {format}$"):
            run(encode(RGB, format))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_decoded_once_is_what_training_decodes(seed):
    """Whatever damage strict decoding overlooks, a JPEG that is decoded once shows training the same pixels."""
    random = np.random.default_rng(seed)
    files = [encode(gradient(64, 48), "JPEG", **options) for options in ({}, {"progressive": True}, {"subsampling": 1})]
    files.append(encode(gradient(64, 48).convert("L"), "JPEG", restart_marker_blocks=3))
    sound = 0
    for _ in range(300):
        data = bytearray(files[random.integers(len(files))])
        for place in random.integers(0, len(data), random.integers(1, 4)):
            data[place] = random.integers(256)
        try:
            jpeg = read_jpeg(bytes(data), 10**6)
        except Unusable:
            continue
        if jpeg.plain and not jpeg.picture.turned:
            seen = DECODER.decode(jpeg.data)
            assert np.array_equal(seen, np.asarray(Image.fromarray(jpeg.picture.pixels).convert("RGB")))
            sound += 1
    assert sound > 50


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
        "truncated_image.png",
        "truncated_jpeg.jpg",
    }


@real_data
def test_real_damaged_jpegs():
    for name in ("zeroed_from_a_third.jpg", "cut_at_40_percent_with_end_marker.jpg"):
        with pytest.raises(Unusable, match="premature end of data segment"):
            run(Path(REAL_DATA, "cases", name).read_bytes())
