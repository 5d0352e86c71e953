"""What goes into a shard holds pixels and nothing else, and these are the file's to the last bit."""

from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastfgssl.archive.images.strip_jpeg import strip_jpeg
from fastfgssl.archive.images.strip_png import strip_png
from helpers.images import DECODER, RGB, encode, gradient, gradient_16_bit, run
from helpers.names import (
    TEXT,
    jpegs_with_names,
    names_in,
    others_with_names,
    pixels,
    png_chunk,
    pngs_with_names,
)

JPEG_KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 2},
}
JPEGS = {
    f"{kind}, {place}": data
    for kind, options in JPEG_KINDS.items()
    for place, data in jpegs_with_names(RGB, **options).items()
}
PNGS = {
    f"{mode}, {place}": data
    for mode, image in {"RGB": RGB, "L": RGB.convert("L"), "P": RGB.quantize(32), "16 bits": gradient_16_bit()}.items()
    for place, data in pngs_with_names(image).items()
}
RE_ENCODED = ("behind the picture", "behind the compressed data", "another IDAT")


def assert_same_pixels(before: bytes, after: bytes) -> None:
    """By both decoders."""
    dtype = np.uint16 if before.startswith(b"\x89PNG") and before[24] == 16 else np.uint8
    assert pixels(before) == pixels(after)
    stripped = DECODER.decode(after, dtype).copy()
    original = DECODER.decode(before, dtype)
    assert original is None or np.array_equal(original, stripped)  # DALI cannot read all that may be between segments


def test_the_search_finds_what_was_planted():
    for files in (JPEGS, PNGS, others_with_names(RGB)):
        assert [place for place, data in files.items() if not names_in(data)] == []


@pytest.mark.parametrize("place", JPEGS)
def test_jpeg_holds_no_name_and_its_own_pixels(place):
    image = run(JPEGS[place])
    assert names_in(image.data) == []
    assert (image.format, image.changes) == ("jpeg", ())
    assert_same_pixels(JPEGS[place], image.data)


@pytest.mark.parametrize("place", PNGS)
def test_png_holds_no_name_and_its_own_pixels(place):
    image = run(PNGS[place])
    assert names_in(image.data) == []
    assert image.format == "png"
    assert (image.changes == ()) == (not place.endswith(RE_ENCODED))
    assert pixels(image.data) == pixels(PNGS[place])


@pytest.mark.parametrize("place", others_with_names(RGB))
def test_other_formats_hold_no_name(place):
    data = others_with_names(RGB)[place]
    image = run(data)
    assert names_in(image.data) == []
    assert image.format == "png"
    assert np.array_equal(DECODER.decode(image.data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_no_name_survives_being_made_smaller():
    for files in (JPEGS, PNGS, others_with_names(RGB)):
        for place, data in files.items():
            assert names_in(run(data, short_side=20).data) == [], place


@settings(max_examples=150)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    seed=st.integers(0, 1000),
    mode=st.sampled_from(["L", "RGB", "CMYK"]),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    restart=st.integers(0, 3),
    optimize=st.booleans(),
)
def test_stripping_a_jpeg_changes_no_pixel(
    width, height, seed, mode, quality, subsampling, progressive, restart, optimize
):
    random = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(random if seed % 2 else np.asarray(gradient(width, height))).convert(mode)
    data = encode(
        picture,
        "JPEG",
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
        restart_marker_rows=restart,
        optimize=optimize,
        comment=TEXT,
    )
    stripped = strip_jpeg(data)
    assert names_in(stripped.data) == []
    assert (stripped.width, stripped.height) == (width, height)
    assert_same_pixels(data, stripped.data)
    assert strip_jpeg(stripped.data).data == stripped.data


@settings(max_examples=80)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    compress=st.integers(0, 9),
)
def test_stripping_a_png_changes_no_pixel(width, height, mode, compress):
    picture = gradient_16_bit(width, height) if mode == "I;16" else gradient(width, height)
    if mode != "I;16":
        picture = picture.quantize(16) if mode == "P" else picture.convert(mode)
    data = encode(picture, "PNG", compress_level=compress)
    stripped = strip_png(data, 10**6)
    assert (stripped.width, stripped.height) == (width, height)
    assert_same_pixels(data, stripped.data)
    assert strip_png(stripped.data, 10**6).data == stripped.data


def interlaced_png(image: np.ndarray) -> bytes:
    """Gray of 8 bits, in Adam7's seven passes."""
    lines = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = image[y::dy, x::dx]
        lines += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 0, 0, 0, 1)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 8), (47, 61)])
def test_interlaced_png_is_kept(size):
    pattern = np.asarray(gradient(*size).convert("L"))
    image = run(interlaced_png(pattern))
    assert image.changes == ()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.data))), pattern)


def test_transparency_is_left_out_of_a_palette():
    picture = RGB.quantize(32)
    data = encode(picture, "PNG", transparency=bytes(range(0, 256, 8)))
    assert b"tRNS" in data
    image = run(data)
    assert b"tRNS" not in image.data
    assert np.array_equal(DECODER.decode(image.data), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_every_subsampling_is_kept(subsampling):
    data = imagecodecs.jpeg8_encode(np.asarray(RGB), 90, subsampling=subsampling)
    image = run(data)
    assert image.changes == ()
    assert_same_pixels(data, image.data)


def test_bytes_before_the_end_of_a_scan_are_kept_out():
    """Names among the compressed bytes, where only a decoder can tell them."""
    data = encode(RGB, "JPEG")
    with pytest.raises(Exception, match="extraneous bytes"):
        run(data[:-2] + TEXT + data[-2:])


def test_zeros_that_a_device_writes_before_the_end_are_left_out():
    data = encode(RGB, "JPEG")
    image = run(data[:-2] + bytes(20) + data[-2:])
    assert image.data == strip_jpeg(data).data
    with pytest.raises(Exception, match="extraneous bytes"):
        run(data[:-2] + bytes(200) + data[-2:])


@pytest.mark.parametrize("name", ["Adobe RGB", "sRGB"])
def test_profile_is_left_out_and_told_if_it_changes_colours(name):
    profile = b"acsp" + name.encode()
    for format in ("JPEG", "PNG", "TIFF", "WEBP"):
        notes = run(encode(RGB, format, icc_profile=profile)).notes
        assert notes == (("its colour profile is not applied",) if name != "sRGB" else ()), format
