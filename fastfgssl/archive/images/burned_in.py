"""What becomes of a picture with text in its pixels, such as a patient's name: left out, kept, or painted over."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fastfgssl.archive.images.pictures import in_8_bits
from fastfgssl.archive.images.text import Line, find_text
from fastfgssl.archive.outcome import Filtered

BURNED_IN = "burned-in text"
PAINTED = "text was painted over"

_FEWEST, _CONTRASTS = 2, (32, 16)
"""Letters and levels of text that is looked for where there is some: an age beside a line is short, others fainter."""
_AROUND = 0.75
"""Of a line's height, painted on each side: letters that were not found stand next to those that were."""
_ROUNDS = 3
"""Times that a painted picture is looked at again."""


def without_text(
    pixels: np.ndarray, levels: tuple[int, int], what: Literal["skip", "keep", "mask"], said: str = ""
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The picture as it may go into an archive, and what was changed.

    pixels: uint8 or uint16 of [height, width] or [height, width, 3]. levels: which are black and white. said: why a
    header makes text likely. Raises Filtered, with the picture, for one that is left out: with `skip` any in which text
    is likely or found; with `mask` one whose header tells of text where none is found, or whose text is still found
    once it is painted over.
    """
    if what == "keep":
        return pixels, ()
    if what == "skip" and said:
        raise _left_out(said, pixels, levels)
    lines = find_text(in_8_bits(pixels, levels))
    if what == "skip" and lines:
        raise _left_out(f"{_lines(len(lines))} found", pixels, levels)
    if not lines:
        if said:
            raise _left_out(f"{said}, and no text is found that could be painted over", pixels, levels)
        return pixels, ()
    painted = pixels.copy()
    for _ in range(_ROUNDS):
        shown = in_8_bits(painted, levels)
        lines += [line for least in _CONTRASTS for line in find_text(shown, fewest=_FEWEST, contrast=least)]
        for line in lines:
            _paint(painted, line)
        lines = find_text(in_8_bits(painted, levels))
        if not lines:
            return painted, (PAINTED,)
    raise _left_out("text is found even where it was painted over", pixels, levels)


def _lines(count: int) -> str:
    return "a line of text was" if count == 1 else f"{count} lines of text were"


def _left_out(why: str, pixels: np.ndarray, levels: tuple[int, int]) -> Exception:
    return Filtered(f"{BURNED_IN}: {why}; --burned-in keep takes such images").showing(pixels, levels)


def _paint(pixels: np.ndarray, line: Line) -> None:
    """Gives a line's place, and a margin around it, the median of what lies around that."""
    around = max(2, round(_AROUND * min(line.right - line.left, line.bottom - line.top)))
    top, bottom = max(0, line.top - around), line.bottom + around
    left, right = max(0, line.left - around), line.right + around
    wider = pixels[max(0, top - around) : bottom + around, max(0, left - around) : right + around]
    outside = np.ones(wider.shape[:2], bool)
    height, width = pixels[top:bottom, left:right].shape[:2]
    y, x = min(top, around), min(left, around)
    outside[y : y + height, x : x + width] = False
    ground = wider[outside] if outside.any() else wider.reshape(-1, *pixels.shape[2:])
    pixels[top:bottom, left:right] = np.median(ground, axis=0).astype(pixels.dtype)
