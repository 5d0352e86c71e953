"""Text over a picture is found at the sizes that machines write it in, and nothing is taken for text that is none."""

from __future__ import annotations

import io
import random
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from fastfgssl.archive.images import burned_in, decoded
from fastfgssl.archive.images.burned_in import without_text
from fastfgssl.archive.images.image import ImageSettings
from fastfgssl.archive.images.pictures import in_8_bits
from fastfgssl.archive.images.text import _letters, _opened, find_text
from fastfgssl.archive.outcome import Filtered
from helpers import text_detection
from helpers.dicom import dicom
from helpers.images import DECODER, REAL_DATA, real_data

WORDS = ("DOE^JOHN 12.03.1957", "Smith, Mary ID 4471193", "F 63y 2021-04-17 10:33", "MUELLER PETRA *1948")


@pytest.fixture(scope="module")
def pictures(phantom_folder) -> list[Image.Image]:
    files = sorted(phantom_folder.rglob("*.png")) + sorted(phantom_folder.rglob("*.jpg"))
    return [Image.open(file).convert("RGB").resize((320, 240), Image.Resampling.BICUBIC) for file in files[:24]]


def overlaid(picture: Image.Image, words: str, *, size: int, colour: str, turned: bool = False) -> np.ndarray:
    """`picture` with words over it, once more through a JPEG."""
    picture = picture.copy()
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(words)
    layer = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(layer).text((1 - left, 1 - top), words, fill=255, font=font)
    layer = layer.rotate(90, expand=True) if turned else layer
    picture.paste(Image.new("RGB", layer.size, colour), (9, 12), layer)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    return np.asarray(Image.open(encoded))


@pytest.mark.parametrize("colour", ["white", "black", "yellow"])
@pytest.mark.parametrize("size", [12, 16, 24])
def test_text_is_found(pictures, size, colour):
    found = [
        bool(find_text(overlaid(picture, words, size=size, colour=colour)))
        for picture, words in zip(pictures, cycle(WORDS), strict=False)
    ]
    assert np.mean(found) >= 0.9


def test_text_is_found_where_it_is_turned_or_the_picture_is_gray(pictures):
    upright = overlaid(pictures[0], WORDS[0], size=16, colour="white")
    turned = overlaid(pictures[0], WORDS[0], size=16, colour="white", turned=True)
    for picture in (upright, turned):
        for seen in (picture, np.asarray(Image.fromarray(picture).convert("L"))):
            assert find_text(seen)
    line = max(find_text(upright), key=lambda line: line.letters)
    right = 10 + ImageFont.load_default(16).getlength(WORDS[0])
    assert (line.left, line.top, line.right) == pytest.approx((10, 13, right), abs=12)
    tall = max(find_text(turned), key=lambda line: line.letters)
    assert tall.bottom - tall.top > 5 * (tall.right - tall.left)


def test_nothing_is_found_where_there_is_none(pictures):
    assert [find_text(np.asarray(picture)) for picture in pictures] == [[]] * len(pictures)
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    for plain in (noise, np.zeros((40, 40), np.uint8), np.zeros((3, 90), np.uint8), np.zeros((1, 1, 3), np.uint8)):
        assert find_text(plain) == []


@real_data
def test_text_over_real_pictures_is_found_and_in_them_there_is_none():
    files = sorted(Path(REAL_DATA, "dermoscopy/images").iterdir())[::120]
    pictures, rng = [Image.open(file).convert("RGB") for file in files], random.Random(0)
    assert sum(bool(find_text(np.asarray(picture))) for picture in pictures) == 0
    written = [
        text_detection.overlaid(picture, size, text_detection.COLOURS[colour], rng)[0]
        for picture in pictures
        for size in (12, 24)
        for colour in ("white", "black", "yellow")
    ]
    assert len(written) >= 120
    assert sum(bool(find_text(picture)) for picture in written) >= 0.97 * len(written)


def test_boxes_of_letters_are_those_of_scipy():
    values = np.zeros((60, 90), np.uint8)
    values[10:22, 5:9] = values[30:45, 40:46] = values[31:43, 72:78] = 200
    values[20:22, 5:15] = 200
    pieces = ndimage.find_objects(ndimage.label(values)[0])
    expected = sorted((x.start, y.start, x.stop, y.stop) for y, x in pieces)
    assert sorted(map(tuple, _letters(values, 32).tolist())) == expected
    assert len(expected) == 3


def test_opening_equals_scipy():
    values = np.random.default_rng(1).integers(0, 256, (61, 50), np.uint8)
    np.testing.assert_array_equal(_opened(values), ndimage.grey_opening(values, size=(7, 7)))


@pytest.mark.parametrize(("lines", "said"), [(1, "a line of text was found"), (2, "2 lines of text were found")])
def test_what_was_found_is_said_in_a_filters_words(monkeypatch, lines, said):
    monkeypatch.setattr(burned_in, "find_text", lambda pixels: [None] * lines)
    (left_out,) = decoded.images_of(dicom(np.eye(40, dtype=np.uint16)), DECODER, decoded.FileSettings())
    assert isinstance(left_out, Filtered)
    assert str(left_out) == f"burned-in text: {said}; --burned-in keep takes such images"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_text_is_painted_over_and_nothing_far_from_it_is(pictures, dtype):
    written = overlaid(pictures[3], "DOE^JOHN 12.03.1957", size=16, colour="white").astype(dtype)
    levels = (0, 255) if dtype == np.uint8 else (0, 255 * 16)
    written *= 1 if dtype == np.uint8 else 16
    before = written.copy()
    painted, changes = without_text(written, levels, "mask")
    assert changes == ("text was painted over",)
    assert painted.dtype == dtype
    np.testing.assert_array_equal(written, before)  # the caller's own
    letters = overlaid(Image.new("RGB", (320, 240)), "DOE^JOHN 12.03.1957", size=16, colour="white").max(axis=2) > 200
    changed = (painted != before).any(axis=2)
    assert changed[letters].all()
    assert not changed[80:].any()
    assert find_text(in_8_bits(painted, levels)) == []


def test_a_picture_is_left_out_whose_header_tells_of_text_that_is_not_found(pictures):
    plain = np.asarray(pictures[0])
    assert without_text(plain, (0, 255), "mask") == (plain, ())
    with pytest.raises(Filtered, match="BurnedInAnnotation is YES, and no text is found that could be painted over"):
        without_text(plain, (0, 255), "mask", "BurnedInAnnotation is YES")
    assert without_text(plain, (0, 255), "keep", "BurnedInAnnotation is YES") == (plain, ())


def test_files_other_than_dicom_are_looked_at_if_that_is_asked_for(pictures):
    def made(file: bytes, **how: str):
        settings = decoded.FileSettings(image=ImageSettings(**how))
        (image,) = decoded.images_of(file, DECODER, settings)
        return image

    for format in ("JPEG", "PNG", "BMP"):
        files = []
        for picture in (Image.fromarray(overlaid(pictures[0], WORDS[0], size=16, colour="white")), pictures[0]):
            picture.save(buffer := io.BytesIO(), format)
            files.append(buffer.getvalue())
        written, plain = files
        assert not isinstance(made(written), Filtered)
        assert str(made(written, find_text="all")).startswith("burned-in text: ")
        painted = made(written, find_text="all", burned_in="mask")
        assert painted.changes[-1] == "text was painted over"
        assert find_text(np.asarray(Image.open(io.BytesIO(painted.data)))) == []
        assert made(plain, find_text="all", burned_in="mask") == made(plain)
