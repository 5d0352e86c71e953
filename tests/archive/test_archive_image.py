"""An image is kept as it is, or changed into what Pillow says it shows."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fastfgssl.archive.outcome import PreparedImage
from helpers.images import DECODER, RGB, encode, gradient, gradient_16_bit, run, with_orientation


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.int32)


KEPT = {
    "gray": (RGB.convert("L"), ("JPEG", "PNG", "TIFF", "BMP", "WEBP")),
    "colour": (RGB, ("JPEG", "PNG", "TIFF", "BMP", "WEBP")),
    "transparent": (RGB.convert("RGBA"), ("PNG", "TIFF", "WEBP")),
    "gray with alpha": (RGB.convert("LA"), ("PNG",)),
    "palette": (RGB.quantize(64), ("PNG", "TIFF", "BMP")),
    "black and white": (RGB.convert("1"), ("PNG", "BMP")),
    "CMYK": (RGB.convert("CMYK"), ("JPEG", "TIFF")),
    "16 bits": (gradient_16_bit(), ("PNG", "TIFF")),
}


@pytest.mark.parametrize(
    ("kind", "format"), [(kind, format) for kind, (_, formats) in KEPT.items() for format in formats]
)
def test_what_needs_no_change_keeps_its_bytes(kind, format):
    data = encode(KEPT[kind][0], format)
    image = run(data, short_side=47)
    assert image.data == data
    assert image.changes == image.notes == ()
    assert (image.format, image.width, image.height) == (format.lower(), 61, 47)
    assert image.bit_depth == (16 if kind == "16 bits" else 8)


def test_camera_preview_inside_a_jpeg_changes_nothing():
    data = encode(RGB, "MPO", save_all=True, append_images=[RGB.resize((10, 10))])
    image = run(data)
    assert image == PreparedImage(data, "jpeg", 61, 47, 8, (), ())


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation, format):
    data = with_orientation(RGB, orientation, format)
    image = run(data)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(np.int32)
    assert (image.data == data) == (orientation == 1)
    assert (image.height, image.width) == upright.shape[:2]
    for shown in (pixels(image.data), DECODER.decode(image.data).astype(np.int32)):
        assert shown.shape == upright.shape
        assert np.abs(shown - upright).mean() <= (2 if format == "JPEG" else 0)
    assert Image.open(io.BytesIO(image.data)).getexif().get(0x0112, 1) == 1


def test_orientation_that_does_not_exist_is_ignored():
    data = with_orientation(RGB, 77, "JPEG")
    assert run(data).data == data


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    short_side=st.integers(1, 60),
    kind=st.sampled_from(["JPEG", "PNG", "16 bits"]),
)
def test_short_side(width, height, short_side, kind):
    picture = gradient_16_bit(width, height) if kind == "16 bits" else gradient(width, height)
    data = encode(picture, "JPEG" if kind == "JPEG" else "PNG")
    image = run(data, short_side=short_side)
    assert pixels(image.data).shape[:2] == (image.height, image.width)
    if min(width, height) <= short_side:
        assert image.data == data
        return
    assert min(image.width, image.height) == short_side
    assert abs(max(image.width, image.height) - max(width, height) * short_side / min(width, height)) <= 0.5
    assert image.format == ("jpeg" if kind == "JPEG" else "png")
    assert image.bit_depth == (16 if kind == "16 bits" else 8)


def test_making_smaller_is_antialiased():
    checkerboard = Image.fromarray((np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.uint8))
    smaller = pixels(run(encode(checkerboard, "PNG"), short_side=32).data)
    assert np.abs(smaller - 127.5).max() < 3


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_survive_making_smaller(format):
    blocks = (np.indices((120, 160)).sum(axis=0) // 8 % 2 * 65535).astype(
        np.uint16
    )  # whose edges make bicubic overshoot
    image = run(encode(Image.fromarray(blocks), format), short_side=50)
    exact = np.asarray(Image.fromarray(blocks.astype(np.float32)).resize((67, 50), Image.Resampling.BICUBIC))
    assert image.bit_depth == 16
    assert np.abs(pixels(image.data) - exact.clip(0, 65535)).max() <= 0.5


def test_noise_survives_being_encoded_anew():
    """JPEG changes it by more levels than two decoders may differ."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    image = run(with_orientation(noise, 6, "JPEG"), short_side=80)
    assert (image.width, image.height, image.changes) == (80, 107, ("turned upright", "made smaller"))


def png_48_bit(values: np.ndarray) -> bytes:
    """A PNG of uint16 [height, width, 3], which Pillow cannot write."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )


def test_sixteen_bit_colour_is_kept_or_the_loss_is_said():
    data = png_48_bit(np.asarray(RGB).astype(np.uint16) * 257)
    kept = run(data)
    assert (kept.data, kept.bit_depth) == (data, 16)
    smaller = run(data, short_side=20)
    assert smaller.bit_depth == 8
    assert smaller.changes == ("made smaller", "16-bit colour became 8-bit")


def test_big_endian_and_wide_integers_become_16_bit_png():
    values = np.asarray(gradient_16_bit()).astype(np.int32)
    image = run(encode(Image.fromarray(values), "TIFF"))
    assert (image.format, image.bit_depth) == ("png", 16)
    assert np.array_equal(pixels(image.data), values)
    assert len(image.changes) == 1


@pytest.mark.parametrize("mode", ["LA", "1", "LAB"])
def test_what_training_misreads_is_encoded_anew(mode):
    picture = RGB.copy()
    picture.putalpha(Image.linear_gradient("L").resize(RGB.size))
    source = picture.convert("LA") if mode == "LA" else RGB.convert(mode)
    image = run(encode(source, "TIFF"))
    expected = np.asarray(source.convert("RGB"))
    assert image.format == "png"
    assert image.changes == (f"{mode} TIFF is not read rightly in training",)
    assert np.array_equal(DECODER.decode(image.data), expected)


def test_lossless_webp_with_exif_reaches_training():
    """DALI 2.4 cannot parse these: they must not get into the archive as they are."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    image = run(encode(RGB, "WEBP", lossless=True, exif=exif))
    assert np.array_equal(DECODER.decode(image.data), np.asarray(RGB))


def test_cmyk_made_smaller_shows_the_same_colours():
    data = encode(RGB.convert("CMYK"), "JPEG", quality=95)
    image = run(data, short_side=40)
    expected = Image.open(io.BytesIO(data)).convert("RGB").resize((image.width, 40), Image.Resampling.BICUBIC)
    assert np.abs(DECODER.decode(image.data).astype(int) - np.asarray(expected)).mean() < 2


def test_encoding_anew_drops_what_was_written_beside_the_picture():
    secret = b"Jane Doe"
    assert secret in encode(RGB, "JPEG", comment=secret)
    assert secret not in run(encode(RGB, "JPEG", comment=secret), short_side=20).data


def test_pages_left_out_are_told():
    image = run(encode(RGB, "TIFF", save_all=True, append_images=[RGB]))
    assert image.notes == ("only the first of several pages or frames is used",)
    assert image.changes == ()
