"""Copies are found whatever was done to them, as if every pair had been compared, and nothing else is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastfgssl.archive.building.near_duplicates import (
    SIDE,
    THRESHOLD,
    _orientations,
    _unit,
    collision_probability,
    near_duplicates,
    thumbnail,
)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Cells of random gray, each different, as lesions differ."""
    rng = np.random.default_rng(0)
    cells = [Image.fromarray(rng.integers(40, 216, (14, 18, 3), np.uint8)) for _ in range(60)]
    return [cell.resize((180, 140), Image.Resampling.BICUBIC) for cell in cells]


def through_jpeg(picture: Image.Image) -> Image.Image:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=40)
    return Image.open(encoded)


COPIES = {
    "the same": lambda picture: picture,
    "smaller": lambda picture: picture.resize((90, 70), Image.Resampling.BICUBIC),
    "encoded again": through_jpeg,
    "mirrored": ImageOps.mirror,
    "turned": lambda picture: picture.rotate(90, expand=True),
    "turned and flipped": lambda picture: ImageOps.flip(picture.rotate(270, expand=True)),
    "brighter": lambda picture: picture.point(lambda level: min(255, int(level * 1.1 + 8))),
    "gray": lambda picture: picture.convert("L"),
    "16 bits of other levels": lambda picture: Image.fromarray(
        np.asarray(picture.convert("L")).astype(np.uint16) * 14 + 300
    ),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_copy_is_found_and_nothing_else(pictures, change):
    rows = np.stack([thumbnail(picture) for picture in [*pictures, *map(change, pictures)]])
    pairs = list(near_duplicates(rows))
    assert [pair[:2] for pair in pairs] == [(place, place + len(pictures)) for place in range(len(pictures))]
    assert all(cosine >= THRESHOLD for *_, cosine in pairs)


def test_no_pair_is_missed_that_comparing_all_finds():
    """Cosines on both sides of the threshold, at the frequencies of few and many."""
    rng = np.random.default_rng(1)
    firsts = rng.standard_normal((300, SIDE * SIDE))
    mixed = [first + rng.standard_normal(SIDE * SIDE) * rng.uniform(0.1, 0.7) for first in firsts]
    values = np.concatenate([firsts, mixed])
    rows = np.rint(values * (127 / np.abs(values).max(axis=1, keepdims=True))).astype(np.int8)
    cosines = np.max(np.einsum("obd,nd->obn", _orientations(_unit(rows)), _unit(rows)), axis=0)
    expected = {(int(a), int(b)) for b, a in np.argwhere(cosines >= THRESHOLD) if a < b}
    found = {pair[:2] for pair in near_duplicates(rows)}
    assert 100 < len(expected) < 250
    assert found <= expected
    assert len(expected - found) <= len(expected) * (1 - collision_probability(THRESHOLD, len(rows))) + 1


def test_a_picture_without_structure_is_like_no_other():
    even = [Image.new("RGB", (64, 48), (level, level, level)) for level in (0, 3, 200)]
    dark = Image.fromarray(np.random.default_rng(2).integers(0, 3, (300, 400), np.uint8))
    ramp = np.linspace(20, 90, 200)
    even += [Image.fromarray(np.add.outer(ramp, slope * ramp).astype(np.uint8)) for slope in (0.2, 1)]
    rows = np.stack([thumbnail(picture) for picture in [*even, dark, dark]])
    assert not rows.any()
    assert list(near_duplicates(rows)) == []


def test_none_and_one_have_no_pairs():
    assert list(near_duplicates(np.zeros((0, SIDE * SIDE), np.int8))) == []
    assert list(near_duplicates(np.ones((1, SIDE * SIDE), np.int8))) == []
