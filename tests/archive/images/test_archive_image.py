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

from fastfgssl.archive.images.image import ImageSettings, encode_picture
from fastfgssl.archive.outcome import Facts
from fastfgssl.runtime.errors import UserError
from helpers.images import DECODER, RGB, encode, gradient, gradient_16_bit, run, with_orientation


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.int32)


KINDS = {
    "gray": (RGB.convert("L"), ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "AVIF")),
    "colour": (RGB, ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "AVIF")),
    "transparent": (RGB.convert("RGBA"), ("PNG", "TIFF", "WEBP", "JPEG2000", "AVIF")),
    "gray with alpha": (RGB.convert("LA"), ("PNG", "TIFF")),
    "palette": (RGB.quantize(64), ("PNG", "TIFF", "BMP", "GIF")),
    "black and white": (RGB.convert("1"), ("PNG", "BMP", "TIFF", "GIF")),
    "CMYK": (RGB.convert("CMYK"), ("JPEG", "TIFF")),
    "YCbCr": (RGB.convert("YCbCr"), ("TIFF",)),
    "Lab": (RGB.convert("LAB"), ("TIFF",)),
    "16 bits": (gradient_16_bit(), ("PNG", "TIFF", "JPEG2000")),
}
EVERY_KIND = [(kind, format) for kind, (_, formats) in KINDS.items() for format in formats]


@pytest.mark.parametrize(("kind", "format"), EVERY_KIND)
def test_every_kind_shows_the_picture_of_its_file(kind, format):
    data = encode(KINDS[kind][0], format)
    image = run(data, short_side=47)
    kept = format in ("JPEG", "PNG")
    name = {"JPEG2000": "JPEG 2000"}.get(format, format)
    assert image.changes == (() if kept else (f"{name} was encoded anew",))
    assert image.notes == ()
    assert (image.format, image.width, image.height) == ("jpeg" if format == "JPEG" else "png", 61, 47)
    sixteen = kind == "16 bits"
    assert (image.bit_depth, image.levels) == ((16, (0, 65535)) if sixteen else (8, (0, 255)))
    source = Image.open(io.BytesIO(data))
    expected = np.asarray(source if sixteen else source.convert("RGB")).astype(int)
    shown = DECODER.decode(image.data, np.uint16 if sixteen else np.uint8)
    assert np.abs(shown[..., 0 if sixteen else slice(None)] - expected).mean() <= (1 if kind == "CMYK" else 0)


def test_camera_preview_inside_a_jpeg_changes_nothing():
    data = encode(RGB, "MPO", save_all=True, append_images=[RGB.resize((10, 10))])
    image = run(data)
    assert (image.format, image.width, image.height, image.changes, image.notes) == ("jpeg", 61, 47, (), ())
    assert np.array_equal(pixels(image.data), pixels(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation, format):
    data = with_orientation(RGB, orientation, format)
    image = run(data)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(np.int32)
    assert ("turned upright" in image.changes) == (orientation != 1)
    assert (image.height, image.width) == upright.shape[:2]
    for shown in (pixels(image.data), DECODER.decode(image.data).astype(np.int32)):
        assert shown.shape == upright.shape
        assert np.abs(shown - upright).mean() <= (2 if format == "JPEG" else 0)
    assert Image.open(io.BytesIO(image.data)).getexif().get(0x0112, 1) == 1


def test_orientation_that_does_not_exist_is_ignored():
    data = with_orientation(RGB, 77, "JPEG")
    assert run(data).data == encode(RGB, "JPEG")


@settings(max_examples=40)
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


def test_sixteen_bit_colour_is_kept():
    values = np.asarray(RGB).astype(np.uint16) * 257
    data = png_48_bit(values)
    kept = run(data)
    assert (kept.data, kept.bit_depth) == (data, 16)
    smaller = run(data, short_side=20)
    assert (smaller.bit_depth, smaller.changes) == (16, ("made smaller",))
    expected = np.asarray(RGB.resize((26, 20), Image.Resampling.BICUBIC)).astype(int) * 257
    assert np.abs(DECODER.decode(smaller.data, np.uint16) - expected).mean() < 257


def test_big_endian_and_wide_integers_become_16_bit_png():
    values = np.asarray(gradient_16_bit()).astype(np.int32)
    image = run(encode(Image.fromarray(values), "TIFF"))
    assert (image.format, image.bit_depth) == ("png", 16)
    assert np.array_equal(pixels(image.data), values)
    assert len(image.changes) == 1


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


def test_what_training_reads_wrongly_is_encoded_anew(monkeypatch):
    """A PNG that is sound by its checksums, and a JPEG that is none of those that are decoded once."""
    wrong = np.zeros((47, 61, 3), np.uint8)
    files = {"png": encode(RGB, "PNG"), "jpeg": encode(RGB, "JPEG", keep_rgb=True)}
    for format, data in files.items():
        answers = iter([wrong, np.asarray(RGB)])
        monkeypatch.setattr(DECODER, "decode", lambda data, dtype, answers=answers: next(answers))
        image = run(data)
        assert image.changes == (f"{format.upper()} is not read rightly in training",)
        assert np.abs(pixels(image.data) - np.asarray(RGB)).mean() < 2


def test_encoding_in_one_format():
    jpeg, png, sixteen = encode(RGB, "JPEG"), encode(RGB, "PNG"), encode(gradient_16_bit(), "PNG")
    assert [run(data, encode="png").format for data in (jpeg, png, sixteen)] == ["png"] * 3
    assert [run(data, encode="jpeg:80").format for data in (jpeg, png, sixteen)] == ["jpeg", "jpeg", "png"]
    assert np.array_equal(pixels(run(jpeg, encode="png").data), pixels(jpeg))
    assert run(jpeg, encode="jpeg:80").data == jpeg  # which loses nothing
    assert len(run(png, encode="jpeg:30").data) < len(run(png, encode="jpeg:90").data)
    for wrong in ("jpeg", "jpeg:0", "jpeg:101", "webp"):
        with pytest.raises(UserError, match="encode must be keep, png or jpeg:N"):
            ImageSettings(encode=wrong)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(47, 61), (47, 61, 3), (1, 2), (700, 1), (1, 2, 3), (3, 900, 3)])
def test_pictures_that_others_decoded(dtype, shape):
    """What is encoded here is verified by a decoder that is not training's: to that it shows the same."""
    random = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    facts = Facts(modality="CT")
    image = encode_picture(random, ImageSettings(), levels=(0, 4095), part="frame 3", facts=facts, notes=("windowed",))
    assert (image.part, image.facts, image.levels, image.notes) == ("frame 3", facts, (0, 4095), ("windowed",))
    assert image.bit_depth == 8 * random.itemsize
    shown = DECODER.decode(image.data, dtype)
    assert np.array_equal(shown if len(shape) == 3 else shown[..., 0], random)


def test_same_picture_has_the_same_hash_in_every_form():
    gray = RGB.convert("L")
    forms = [
        encode(gray, "PNG"),
        encode(gray, "TIFF"),
        encode(gray.convert("RGB"), "BMP"),
        encode(gray, "PNG", compress_level=1),
    ]
    assert len({run(data).pixels for data in forms}) == 1
    others = [
        encode(RGB, "PNG"),
        encode(gray.point(lambda level: min(level + 1, 255)), "PNG"),
        encode(gray.rotate(180), "PNG"),
    ]
    assert len({run(data).pixels for data in [forms[0], *others]}) == 4
