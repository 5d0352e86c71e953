"""Which left-out pictures are kept to be shown: few, different, and the same ones whatever the order."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfgssl.archive.building.previews import keep_few, preview_of
from fastfgssl.archive.outcome import Unusable
from fastfgssl.archive.report.charts import ticks
from fastfgssl.archive.report.counting import binned, drawn, tally
from fastfgssl.archive.report.left_out import LeftOut, _FirstPictures
from fastfgssl.archive.report.samples import Brightness


def test_a_part_keeps_few_different_pictures_of_each_kind():
    def rows() -> list[dict]:
        texts = [
            {"reason": f"burned-in text: {i}", "preview": b"picture %d" % (i % 100), "entry": i} for i in range(200)
        ]
        return [*texts, {"reason": "too small", "preview": b"one", "entry": 200}, {"reason": "damaged", "entry": 201}]

    kept = [row for row in keep_few(rows()) if "preview" in row]
    assert len(keep_few(rows())) == 202
    assert len(kept) == 16 + 1
    assert len({row["preview"] for row in kept}) == 17
    fewer = [row for row in keep_few(rows()[50:]) if "preview" in row]
    assert {row["preview"] for row in fewer} == {row["preview"] for row in kept}


def test_the_order_in_which_pictures_come_does_not_matter():
    found = [LeftOut("text", f"{i % 90:03d}", f"{i:03d}", "", None, b"") for i in range(180)]
    shuffled = random.Random(0).sample(found, len(found))
    kept = []
    for order in (found, shuffled):
        first = _FirstPictures()
        first.take(order[:100])
        first.take(order[100:])
        kept.append(list(first))
    assert kept[0] == kept[1] == found[:48]


def test_the_picture_of_what_is_left_out_is_within_its_levels():
    assert preview_of(Unusable("damaged")) == {}
    pixels = np.full((500, 700), 1000, np.uint16)
    jpeg = preview_of(Unusable("text").showing(pixels, (0, 2000)))["preview"]
    assert jpeg[:2] == b"\xff\xd8"
    assert len(jpeg) < 2000


@given(st.floats(0, 1e5), st.floats(1e-3, 1e5), st.booleans())
def test_an_axis_has_a_few_round_numbers_in_its_range(low, width, log):
    low = max(low, 0.9) if log else low
    high = low * 1.1 + width if log else low + width
    found = ticks(low, high, log=log)
    assert found == sorted(set(found))
    assert all(low * (1 - 1e-6) - 1e-9 <= tick <= high * (1 + 1e-6) for tick in found)
    if high - low > 8:
        assert 2 <= len(found) <= 24


def test_columns_are_counted_without_their_order():
    table = pa.table({"a": ["x", None, "y", "x", "y", "z"], "b": [1, 1, 2, 1, 2, None]})
    found = tally(table, ("a", "b"), 2)
    assert found.rows == [("x", 1, 2), ("y", 2, 2)]
    assert (found.kinds, found.others) == (2, 2)
    assert binned(np.array([1, 1, 2, 3, 4, 5, 9])) == [
        ("1", 2),
        ("2", 1),
        ("3 to 4", 2),
        ("5 to 8", 1),
        ("9 to 16", 1),
    ]
    ids = pa.chunked_array([["d", "a", "c"], ["b", "a"]])
    assert drawn(ids, np.array([0, 2, 3, 4]), 3).tolist() == [4, 3, 2]
    assert drawn(ids, np.array([], np.int64), 3).tolist() == []


@pytest.mark.parametrize("counts", [[], [1], [1 << 20]])
def test_bins_hold_all(counts):
    assert sum(number for _, number in binned(np.array(counts, np.int64))) == len(counts)


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 3)])
def test_brightness_is_that_of_the_mean_of_colours(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    gray = pixels.mean(axis=2) if pixels.ndim == 3 else pixels
    bright = Brightness()
    bright.add(pixels)
    assert bright.levels.tolist() == (np.histogram(gray, bins=32, range=(0, 256))[0] / gray.size).tolist()
    assert bright.means == pytest.approx([gray.mean()])
