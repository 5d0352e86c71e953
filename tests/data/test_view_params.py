"""View parameters: pure in the sample, and distributed as their preset says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastfgssl.data.graph import view_flags
from fastfgssl.data.order import Slots
from fastfgssl.data.presets import PRESETS, Affine, Crop, Preset, ViewSpec, find_preset
from fastfgssl.data.view_params import ViewDraws, draw_view_params
from fastfgssl.kernels.fan_out.reference import TRANSPOSE
from fastfgssl.runtime.errors import UserError

COUNT = 20_000
SLOTS = Slots(np.arange(COUNT), np.arange(COUNT) // 500)
SIZES = np.tile([60, 45], (COUNT, 1))


def draw(preset: Preset, slots: Slots = SLOTS, sizes: np.ndarray = SIZES, seed: int = 3, grids=(4, 2), **changes):
    settings = {"image_size": 32, "grids": grids} | changes
    return draw_view_params(preset, slots, seed=seed, sizes=sizes, **settings)


def arrays(params) -> list[np.ndarray]:
    drawn = [value for view in (params.puzzle, params.anchor) for value in view if value is not None]
    return drawn + list(params.permutations)


@pytest.mark.parametrize("name", PRESETS)
def test_a_sample_is_drawn_alike_in_any_company(name):
    sizes = np.random.default_rng(0).integers(20, 90, (COUNT, 2))
    everything = draw(PRESETS[name], sizes=sizes)
    chosen = np.array([17, 3, 11_000, 4])
    alone = draw(PRESETS[name], Slots(SLOTS.ids[chosen], SLOTS.epochs[chosen]), sizes[chosen])
    for whole, part in zip(arrays(everything), arrays(alone), strict=True):
        np.testing.assert_array_equal(whole[chosen], part)


def test_epochs_seeds_and_views_are_drawn_apart():
    base = draw(PRESETS["paper"])
    for other in (draw(PRESETS["paper"], seed=4), draw(PRESETS["paper"], Slots(SLOTS.ids, SLOTS.epochs + 1))):
        for a, b in zip(arrays(base), arrays(other), strict=True):
            assert a.any() == b.any()
            assert not a.any() or not np.array_equal(a, b)
    assert not np.array_equal(base.puzzle.grayscale, base.anchor.grayscale)


def share(values: np.ndarray, expected: float) -> bool:
    return abs(values.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / len(values)) + 1e-12


@pytest.mark.parametrize("name", PRESETS)
def test_probabilities_are_those_of_the_preset(name):
    params = draw(PRESETS[name], image_size=224)
    for view, drawn in ((PRESETS[name].puzzle, params.puzzle), (PRESETS[name].anchor, params.anchor)):
        assert share(drawn.flip, view.flip)
        if view.vertical_flip:
            assert share(drawn.vertical_flip, view.vertical_flip)
        if view.quarter_turns:
            assert share(drawn.transpose, view.quarter_turns / 2)
        assert share(drawn.grayscale, view.grayscale)
        assert share(drawn.solarise, view.solarise)
        if view.blur:
            assert share(drawn.sigma > 0, view.blur)
            used = drawn.sigma[drawn.sigma > 0]
            assert view.sigma[0] <= used.min() < 0.12
            assert 1.98 < used.max() <= view.sigma[1]
        if view.jitter:
            assert share((drawn.jitter != [1, 1, 1, 0]).any(axis=1), view.jitter.p)
            assert np.abs(drawn.jitter[:, 0] - 1).max() <= view.jitter.brightness + 1e-6


@pytest.mark.parametrize(("view_sizes", "image_size", "factor"), [("relative", 64, 64 / 224), ("pixels", 64, 1)])
def test_sizes_are_stated_for_224_pixels_or_are_pixels(view_sizes, image_size, factor):
    for preset in (PRESETS["paper"], PRESETS["barlow"]):
        stated = draw(preset, image_size=224, view_sizes="pixels")
        # at the side for which they are stated the two are the same, bit for bit
        for one, other in zip(arrays(stated), arrays(draw(preset, image_size=224)), strict=True):
            np.testing.assert_array_equal(one, other)
        drawn = draw(preset, image_size=image_size, view_sizes=view_sizes)
        np.testing.assert_allclose(drawn.puzzle.sigma, factor * stated.puzzle.sigma, rtol=1e-6)
        np.testing.assert_array_equal(drawn.puzzle.crop, stated.puzzle.crop)  # in pixels of the image, not of a view


SYMMETRIES = ViewSpec(flip=0.5, vertical_flip=0.5, quarter_turns=1.0)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        # flags of: nothing, flip, vertical flip, both; the same after a transposition
        (ViewSpec(), {0: 1}),
        (ViewSpec(flip=0.5, vertical_flip=0.5), {0: 1 / 4, 1: 1 / 4, 8: 1 / 4, 9: 1 / 4}),
        (ViewSpec(flip=0.3), {0: 0.7, 1: 0.3}),
        (ViewSpec(vertical_flip=0.3), {0: 0.7, 8: 0.3}),
        # turns alone never mirror: a quarter either way is a transposition and one flip
        (ViewSpec(quarter_turns=1.0), {0: 1 / 4, 9: 1 / 4, TRANSPOSE + 1: 1 / 4, TRANSPOSE + 8: 1 / 4}),
        (ViewSpec(quarter_turns=0.4), {0: 0.7, 9: 0.1, TRANSPOSE + 1: 0.1, TRANSPOSE + 8: 0.1}),
        (SYMMETRIES, {flags + turn: 1 / 8 for flags in (0, 1, 8, 9) for turn in (0, TRANSPOSE)}),
        (ViewSpec(flip=0.5, quarter_turns=1.0), {f + turn: 1 / 8 for f in (0, 1, 8, 9) for turn in (0, TRANSPOSE)}),
    ],
)
def test_flips_and_turns_are_symmetries_of_a_square_as_often_as_they_are_to_be(view, expected):
    flags = view_flags(draw(Preset(puzzle=view, anchor=ViewSpec())).puzzle)
    assert set(flags.tolist()) == set(expected)
    for symmetry, probability in expected.items():
        assert share(flags == symmetry, probability)


def test_turns_take_numbers_that_nothing_else_takes():
    paper = PRESETS["paper"]
    turned = Preset(puzzle=replace(paper.puzzle, vertical_flip=0.5, quarter_turns=1.0), anchor=paper.anchor)
    before, after = draw(paper), draw(turned)
    mirrored = {"flip": None, "vertical_flip": None, "transpose": None}
    before, after = (params._replace(puzzle=params.puzzle._replace(**mirrored)) for params in (before, after))
    for one, other in zip(arrays(before), arrays(after), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", PRESETS)
def test_built_in_presets_are_within_the_ranges_that_a_users_must_keep(name):
    PRESETS[name].check("")


def test_presets_for_one_kind_of_picture_do_what_that_picture_allows():
    for name in ("dermoscopy", "fundus", "histology", "radiograph", "ultrasound"):
        for view in (PRESETS[name].puzzle, PRESETS[name].anchor):
            assert (view.solarise, view.grayscale) == (0, 0)
            assert view.crop.area == (0.6, 1.0)
            assert view.flip == 0.5
            assert (view.quarter_turns > 0) == (name in ("dermoscopy", "histology"))
            assert (view.vertical_flip > 0) == (name in ("dermoscopy", "histology", "fundus"))
        assert PRESETS[name].colour == (name in ("dermoscopy", "fundus", "histology"))


def test_the_paper_preset_is_the_published_one():
    paper = PRESETS["paper"]
    assert paper.puzzle == ViewSpec(flip=0.5, grayscale=0.2, blur=1.0, sigma=(0.1, 2.0), solarise=0.0)
    assert paper.anchor == ViewSpec(flip=0.0, grayscale=0.2, blur=0.1, sigma=(0.1, 2.0), solarise=0.2)


def test_permutations_are_fresh_for_every_sample_and_grid():
    first, second = draw(PRESETS["paper"]).permutations
    assert first.shape == (COUNT, 16)
    assert second.shape == (COUNT, 4)
    np.testing.assert_array_equal(np.sort(first, axis=1), np.tile(np.arange(16), (COUNT, 1)))
    _, counts = np.unique(second, axis=0, return_counts=True)
    assert len(counts) == 24
    assert len(np.unique(first, axis=0)) > 0.99 * COUNT


def crops(sizes, crop=None) -> np.ndarray:
    view = ViewSpec(crop=crop or Crop())
    return draw(Preset(puzzle=view, anchor=ViewSpec()), sizes=np.asarray(sizes)).puzzle.crop


def test_crops_lie_inside_and_keep_to_area_and_ratio():
    x0, y0, x1, y1 = crops(SIZES).T
    assert x0.min() >= 0
    assert y0.min() >= 0
    assert x1.max() <= 60
    assert y1.max() <= 45
    area, ratio = (x1 - x0) * (y1 - y0) / (60 * 45), (x1 - x0) / (y1 - y0)
    assert 0.07 < area.min() < 0.1  # rounding to pixels moves it a little
    assert area.max() > 0.95
    assert 0.7 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.42
    # both ends are reached: nothing keeps crops away from the edges
    assert x0.min() == 0
    assert x1.max() == 60


def test_an_image_too_narrow_for_any_crop_is_cut_to_the_nearest_ratio():
    x0, y0, x1, y1 = crops(np.tile([100, 4], (COUNT, 1)), Crop(area=(0.9, 1.0))).T
    np.testing.assert_array_equal(y1 - y0, 4)
    np.testing.assert_array_equal(x1 - x0, 5)
    np.testing.assert_array_equal(x0, 47)


def test_affine_maps_turn_and_scale_about_the_centre():
    preset = Preset(puzzle=ViewSpec(affine=Affine(degrees=10, scale=(0.9, 1.1))), anchor=ViewSpec())
    matrices = draw(preset).puzzle.affine
    centre = np.array([16.0, 16.0, 1.0])
    np.testing.assert_allclose(matrices @ centre, np.tile([16, 16], (COUNT, 1)), atol=1e-4)
    magnification = 1 / np.sqrt(np.linalg.det(matrices[:, :, :2].astype(np.float64)))
    assert 0.9 - 1e-3 <= magnification.min() < 0.905
    assert 1.095 < magnification.max() <= 1.1 + 1e-3
    angle = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert -10 - 1e-3 <= angle.min() < -9.9
    assert 9.9 < angle.max() <= 10 + 1e-3


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'paper'"):
        find_preset("papers")


def test_what_a_preset_never_does_is_not_drawn():
    assert draw(PRESETS["paper"]).puzzle._replace(sigma=None)[3:] == ViewDraws(*[None] * 7)[3:]
    assert draw(PRESETS["ultrasound"]).puzzle.vertical_flip is None
    assert draw(PRESETS["fundus"]).puzzle.transpose is None
