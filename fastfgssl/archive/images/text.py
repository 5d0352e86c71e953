"""Text that is drawn into a picture, such as a name in the corner of an ultrasound image, found without a model.

What a machine writes over a picture has strokes of one brightness, thinner than a few pixels, on a ground that they
stand out from; letters are of one height, and stand in a row at even distances. That is all that is looked for. Hair,
vessels and scratches are strokes too, but no row of small pieces of one height; a ruler's numbers are text. What is
handwritten, turned by other angles than a quarter, or blurred by a scan is not found: docs/archive.md has what was
measured.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

_STROKE = 7
"""Pixels across that a stroke has at most: what is wider is taken for a part of the picture."""
_CONTRAST = 32
"""Levels of 255 by which a stroke differs from what is beside it."""
_EVEN = 24
"""Levels that one stroke spans within."""
_SIZES = (6, 48)
"""Pixels of a letter's longer side."""
_LETTERS = 4
"""In a row, from which it is text, and one more with each doubling of the pieces beyond `_PIECES`: the more pieces a
noisy picture has, the longer are the rows that chance makes of them."""
_PIECES = 200


class Line(NamedTuple):
    """A line of text: where it lies in the picture, in pixels, ends excluded, and its letters."""

    left: int
    top: int
    right: int
    bottom: int
    letters: int


def find_text(picture: np.ndarray, *, fewest: int = _LETTERS, contrast: int = _CONTRAST) -> list[Line]:
    """Lines of text in `picture`, uint8 [H, W] or [H, W, 3], from left to right or turned by a quarter.

    fewest: letters that a row has, in a picture of few pieces. contrast: levels by which strokes stand out. With less
    of either, more of a picture is taken for text.
    """
    if picture.ndim == 2:
        bands = [picture, 255 - picture]
    else:  # white and coloured strokes on a dark or coloured ground; black ones, and coloured ones on a pale ground
        least = picture.min(axis=2)
        bands = [picture.max(axis=2), least, 255 - least]
    lines = []
    for band in bands:
        letters = _letters(band, contrast)
        lines += _rows(letters, fewest)
        turned = _rows(letters[:, [1, 0, 3, 2]], fewest)
        lines += [Line(line.top, line.left, line.bottom, line.right, line.letters) for line in turned]
    return lines


def _letters(values: np.ndarray, contrast: int) -> np.ndarray:
    """int64 [N, 4], left, top, right and bottom of strokes that have the size and the even brightness of a letter.

    values: uint8 [H, W], where strokes are brighter than what is beside them.
    """
    if min(values.shape) < _STROKE:
        return np.zeros((0, 4), np.int64)
    strokes = values - _opened(values) >= contrast  # the opened picture is nowhere brighter
    labels, count = ndimage.label(strokes, structure=np.ones((3, 3)))
    if not count:
        return np.zeros((0, 4), np.int64)
    places = np.flatnonzero(strokes)
    of_piece, brightness = labels.ravel()[places].astype(np.int64) - 1, values.ravel()[places].astype(np.int64)
    y, x = np.divmod(places, values.shape[1])
    # noise has thousands of pieces, of which `ndimage.find_objects` would make as many Python objects
    boxes = np.repeat(np.array([[*values.shape[::-1], 0, 0]]), count, axis=0)
    edges = (np.minimum, x), (np.minimum, y), (np.maximum, x + 1), (np.maximum, y + 1)
    for column, (reduce, edge) in enumerate(edges):
        reduce.at(boxes[:, column], of_piece, edge)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = np.bincount(of_piece, minlength=count)
    peak = np.zeros(count, np.int64)
    np.maximum.at(peak, of_piece, brightness)
    # of one brightness: much of a letter is nearly as bright as its brightest pixel, only its edge is not
    core = np.bincount(of_piece, weights=brightness >= peak[of_piece] - _EVEN, minlength=count)
    small, large = np.minimum(width, height), np.maximum(width, height)
    is_letter = (
        (large >= _SIZES[0])
        & (large <= _SIZES[1])
        & (large <= 12 * small)  # an l or an I
        & (area > 0.15 * width * height)
        & (core >= 0.25 * area)
    )
    return boxes[is_letter]


def _opened(values: np.ndarray) -> np.ndarray:
    """Values without what is bright and thinner than `_STROKE`: the maximum of the minima around each pixel."""
    for reduce in (np.minimum, np.maximum):
        for axis in (0, 1):
            padded = np.pad(values, [(_STROKE // 2,) * 2 if axis == side else (0, 0) for side in (0, 1)], "edge")
            # of 7 neighbours by windows of 2 and 4: three passes instead of six
            for step in (1, 2, 3):
                ahead, here = (slice(step, None), slice(None, -step))
                chosen = (ahead, slice(None)) if axis == 0 else (slice(None), ahead)
                others = (here, slice(None)) if axis == 0 else (slice(None), here)
                padded = reduce(padded[chosen], padded[others])
            values = padded
    return values


def _rows(letters: np.ndarray, fewest: int) -> list[Line]:
    """Rows of letters of one height whose gaps are narrow beside it, from left to right."""
    tall = letters[:, 3] - letters[:, 1] >= _SIZES[0]
    letters = letters[tall]
    letters = letters[np.argsort(letters[:, 0], kind="stable")]
    lefts = letters[:, 0]
    boxes = letters.tolist()
    used = [False] * len(boxes)
    needed = fewest + max(0, math.ceil(math.log2(max(1, len(boxes)) / _PIECES)))
    lines = []
    for first in range(len(boxes)):
        row = [first]
        while (following := _next(boxes, lefts, used, row[-1])) is not None:
            row.append(following)
        if not used[first] and len(row) >= needed:
            for place in row:
                used[place] = True
            chosen = letters[row]
            (left, top), (right, bottom) = chosen[:, :2].min(axis=0).tolist(), chosen[:, 2:].max(axis=0).tolist()
            lines.append(Line(left, top, right, bottom, len(row)))
    return lines


def _next(boxes: list[list[int]], lefts: np.ndarray, used: list[bool], last: int) -> int | None:
    """The letter that follows another in its row."""
    left, top, right, bottom = boxes[last]
    height = bottom - top
    begin, end = np.searchsorted(lefts, (max(left + 1, right - 0.2 * height), right + 0.9 * height))
    for place in range(begin, end):
        _, other_top, _, other_bottom = boxes[place]
        other = other_bottom - other_top
        # letters stand on one line, or hang from one, and are of one height but for ascenders and descenders
        level = min(abs(top - other_top), abs(bottom - other_bottom)) <= max(1, 0.1 * height)
        if not used[place] and level and max(height, other) <= 1.6 * min(height, other):
            return place
    return None
