"""The random parameters of a batch's views: a pure function of (preset, seed, epoch, sample).

Every number comes from Philox under a key of its own, so a sample's parameters do not depend on which rank draws them,
on what was drawn before, or on the other samples of its batch.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from fastfgssl.config.schema import ViewSizes
from fastfgssl.config.views import REFERENCE_SIDE
from fastfgssl.data.order import Slots
from fastfgssl.data.philox import Use, permutations, random_words, uniform
from fastfgssl.data.presets import Affine, Crop, Jitter, Preset, ViewSpec

# B images of a batch


class ViewDraws(NamedTuple):
    """One view's parameters; an entry that its preset never needs is None.

    Flips and turns are one of the symmetries of a square: first a transposition, then flips.
    """

    flip: np.ndarray  # bool [B]
    grayscale: np.ndarray  # bool [B]
    solarise: np.ndarray  # bool [B]
    sigma: np.ndarray | None  # float32 [B], pixels; 0: not blurred
    crop: np.ndarray | None  # float32 [B, 4], x0, y0, x1, y1 in pixels of the decoded image
    jitter: np.ndarray | None  # float32 [B, 4], factors of brightness, contrast, saturation, and hue in degrees
    affine: np.ndarray | None  # float32 [B, 2, 3], from view pixels to pixels of the resized image
    vertical_flip: np.ndarray | None = None  # bool [B]
    transpose: np.ndarray | None = None  # bool [B]


class ViewParams(NamedTuple):
    puzzle: ViewDraws
    anchor: ViewDraws
    permutations: tuple[np.ndarray, ...]  # for each grid g > 0: int32 [B, g * g], tile t shows input tile [t]


class _Column(IntEnum):
    """Place of each number among those drawn for a view; new ones are appended."""

    FLIP = 0
    GRAYSCALE = 1
    SOLARISE = 2
    BLUR = 3
    SIGMA = 4
    JITTER = 5
    BRIGHTNESS = 6
    CONTRAST = 7
    SATURATION = 8
    HUE = 9
    ROTATION = 10
    SCALE = 11
    VERTICAL_FLIP = 12
    TURNED = 13
    QUARTERS = 14


_CROP_TRIES = 10  # as torchvision's RandomResizedCrop


def draw_view_params(
    preset: Preset,
    slots: Slots,
    *,
    seed: int,
    sizes: np.ndarray,
    image_size: int,
    grids: tuple[int, ...],
    view_sizes: ViewSizes = "relative",
) -> ViewParams:
    """Draws the parameters of all views of a batch.

    slots: sample ids and epochs; sizes: [B, 2], width and height of the decoded images in pixels; image_size: side of
    the views in pixels; grids: tiles a side of each puzzle, 0 for one that is not made; view_sizes: whether sizes in
    the preset are stated for `REFERENCE_SIDE` pixels, or are pixels of these views.
    """
    size = image_size / REFERENCE_SIDE if view_sizes == "relative" else 1.0

    def words(what: int, count: int) -> np.ndarray:
        return random_words(seed, slots.epochs, slots.ids, what, count)

    def view(view: ViewSpec, numbers: Use, crop_numbers: Use) -> ViewDraws:
        u = uniform(words(numbers, len(_Column)))
        flip, vertical_flip, transpose = _symmetry(view, u)
        return ViewDraws(
            flip=flip,
            grayscale=u[:, _Column.GRAYSCALE] < view.grayscale,
            solarise=u[:, _Column.SOLARISE] < view.solarise,
            sigma=_sigma(view, u, size) if view.blur else None,
            crop=_crop(view.crop, uniform(words(crop_numbers, 2 * _CROP_TRIES + 2)), sizes) if view.crop else None,
            jitter=_jitter(view.jitter, u) if view.jitter else None,
            affine=_affine(view.affine, u, image_size) if view.affine else None,
            vertical_flip=vertical_flip if view.vertical_flip or view.quarter_turns else None,
            transpose=transpose if view.quarter_turns else None,
        )

    return ViewParams(
        puzzle=view(preset.puzzle, Use.PUZZLE, Use.PUZZLE_CROP),
        anchor=view(preset.anchor, Use.ANCHOR, Use.ANCHOR_CROP),
        permutations=tuple(
            permutations(words(Use.PERMUTATION + index, grid * grid)).astype(np.int32)
            for index, grid in enumerate(grids)
            if grid
        ),
    )


def _between(u: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    return low + (high - low) * u


def _symmetry(view: ViewSpec, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flips, then a turn anticlockwise, as what gives the same: a transposition, then flips. bool [B] each."""
    flip, vertical_flip = u[:, _Column.FLIP] < view.flip, u[:, _Column.VERTICAL_FLIP] < view.vertical_flip
    quarters = np.where(u[:, _Column.TURNED] < view.quarter_turns, np.floor(4 * u[:, _Column.QUARTERS]), 0)
    transpose = quarters % 2 == 1
    # what was mirrored before rows and columns are exchanged is mirrored the other way after it
    flip, vertical_flip = np.where(transpose, vertical_flip, flip), np.where(transpose, flip, vertical_flip)
    return flip ^ (quarters >= 2), vertical_flip ^ ((quarters == 1) | (quarters == 2)), transpose


def _sigma(view: ViewSpec, u: np.ndarray, size: float) -> np.ndarray:
    sigma = size * _between(u[:, _Column.SIGMA], *view.sigma)
    return np.where(u[:, _Column.BLUR] < view.blur, sigma, 0).astype(np.float32)


def _jitter(jitter: Jitter, u: np.ndarray) -> np.ndarray:
    spread = np.array([jitter.brightness, jitter.contrast, jitter.saturation, 360 * jitter.hue])
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    shift = _between(u[:, _Column.BRIGHTNESS : _Column.HUE + 1], -spread, spread)
    applied = u[:, _Column.JITTER, None] < jitter.p
    return np.where(applied, neutral + shift, neutral).astype(np.float32)


def _affine(affine: Affine, u: np.ndarray, image_size: int) -> np.ndarray:
    """Rotation and magnification about the centre as the map from a view's pixel to the pixel it shows."""
    angle = np.deg2rad(_between(u[:, _Column.ROTATION], -affine.degrees, affine.degrees))
    inverse_scale = 1 / _between(u[:, _Column.SCALE], *affine.scale)
    cos, sin = inverse_scale * np.cos(angle), inverse_scale * np.sin(angle)
    linear = np.stack((cos, -sin, sin, cos), axis=-1).reshape(-1, 2, 2)
    centre = np.full((2, 1), image_size / 2)
    return np.concatenate((linear, centre - linear @ centre), axis=-1).astype(np.float32)


def _crop(crop: Crop, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """torchvision's RandomResizedCrop: the first of ten random boxes that fits, else the largest centred one."""
    width, height = np.asarray(sizes, dtype=np.float64).T[:, :, None]
    area = width * height * _between(u[:, :_CROP_TRIES], *crop.area)
    ratio = np.exp(_between(u[:, _CROP_TRIES : 2 * _CROP_TRIES], *np.log(crop.ratio)))
    widths, heights = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = np.argmax(fits, axis=1)[:, None]
    # none fits: the whole image, cut to the nearest ratio that is allowed
    limited = np.clip(width / height, *crop.ratio)
    fallback_width = np.minimum(width, np.round(height * limited))
    fallback_height = np.minimum(height, np.round(width / limited))
    found = fits.any(axis=1, keepdims=True)
    w = np.where(found, np.take_along_axis(widths, first, 1), fallback_width)
    h = np.where(found, np.take_along_axis(heights, first, 1), fallback_height)
    x = np.where(found, np.floor(u[:, -2:-1] * (width - w + 1)), np.floor((width - w) / 2))
    y = np.where(found, np.floor(u[:, -1:] * (height - h + 1)), np.floor((height - h) / 2))
    return np.concatenate((x, y, x + w, y + h), axis=1).astype(np.float32)
