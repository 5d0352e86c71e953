"""View presets of a user's own: read, checked, and held by the configuration itself."""

from __future__ import annotations

import re

import pytest
import yaml

from fastfgssl.config.files import config_from_values, config_to_values, load_config, write_config
from fastfgssl.config.help import meaning
from fastfgssl.config.preset_text import find_preset, text_of
from fastfgssl.config.presets import PLAIN, PRESETS
from fastfgssl.config.views import Affine, Crop, Jitter, Preset, ViewSpec
from fastfgssl.runtime.errors import UserError
from helpers.paths import ROOT

MINE = """
base: dermoscopy
puzzle:
  vertical_flip: 0      # as text, without a point
  jitter: {hue: 1e-3}
anchor:
  crop: null
  affine: {degrees: 5, scale: [0.9, 1.1]}
interpolation: cubic
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": {"path": "archive"}, "train": {"epochs": 10}}))
    return path


def load(file, content: str):
    preset = file.parent / "mine.yaml"
    preset.write_text(content)
    return load_config(file, [f"data.views={preset}"])


def test_a_file_is_its_base_with_what_it_says(file):
    base, preset = PRESETS["dermoscopy"], find_preset(load(file, MINE).data.views)
    assert preset.interpolation == "cubic"
    assert preset.puzzle.vertical_flip == 0
    assert preset.puzzle.jitter == Jitter(p=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=1e-3)
    assert preset.puzzle.crop == base.puzzle.crop
    assert preset.anchor.crop is None
    assert preset.anchor.affine == Affine(degrees=5, scale=(0.9, 1.1))
    assert preset.anchor.jitter == base.anchor.jitter


def test_without_a_base_nothing_is_done_that_is_not_said(file):
    preset = find_preset(load(file, "puzzle: {crop: {area: [0.5, 1]}, flip: 0.5}").data.views)
    assert preset == Preset(puzzle=ViewSpec(crop=Crop(area=(0.5, 1.0)), flip=0.5), anchor=PLAIN.anchor)


def test_the_configuration_holds_the_preset_and_not_its_file(file, tmp_path):
    config = load(file, MINE)
    (file.parent / "mine.yaml").unlink()
    assert config.data.views.startswith("{")
    assert "\n" not in config.data.views
    write_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config
    assert config_from_values(config_to_values(config)) == config


def test_a_preset_has_one_line_however_it_is_written(file):
    config = load(file, MINE)
    spread = yaml.safe_dump(yaml.safe_load(MINE) | {"interpolation": "cubic"})
    assert load(file, spread) == config
    values = yaml.safe_load(MINE)
    inline = yaml.safe_dump(values, default_flow_style=True, width=1000).strip()
    assert load_config(file, [f"data.views={inline}"]) == config
    file.write_text(yaml.safe_dump({"data": {"path": "archive", "views": values}, "train": {"epochs": 10}}))
    assert load_config(file) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_built_in_preset_survives_being_written(name):
    assert find_preset(text_of(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base: dermoscopi", "data.views.base = 'dermoscopi': must be one of paper, barlow, "),
        ("base: dermoscopi", "did you mean 'dermoscopy'?"),
        ("bas: paper", "unknown key 'data.views.bas'; did you mean 'base'?"),
        ("view: {}", "unknown key 'data.views.view'; known are base, puzzle, anchor, interpolation"),
        ("puzzle: {blurr: 1}", "unknown key 'data.views.puzzle.blurr'; did you mean 'blur'?"),
        ("anchor: {crop: {areas: 1}}", "unknown key 'data.views.anchor.crop.areas'; did you mean 'area'?"),
        ("anchor: {blur: 1.5}", "data.views.anchor.blur = 1.5: must be in [0, 1]"),
        ("anchor: {flip: often}", "data.views.anchor.flip = 'often': must be a number"),
        ("anchor: {quarter_turns: true}", "data.views.anchor.quarter_turns = 'true': must be a number"),
        (
            "puzzle: {crop: {area: [1, 0.6]}}",
            "data.views.puzzle.crop.area = [1.0, 0.6]: must be two numbers, the lower",
        ),
        ("puzzle: {crop: {area: [0.6, 1.1]}}", "greater than 0 and at most 1"),
        ("puzzle: {crop: {area: 0.6}}", "data.views.puzzle.crop.area = [0.6]: must be two numbers"),
        ("puzzle: {sigma: [0, 1]}", "data.views.puzzle.sigma = [0.0, 1.0]: must be two numbers, the lower one first"),
        ("puzzle: {jitter: {hue: 0.1}}", "missing key data.views.puzzle.jitter.p"),
        ("puzzle: {jitter: {p: 1, hue: 0.6}}", "data.views.puzzle.jitter.hue = 0.6: must be in [0, 0.5]"),
        (
            "puzzle: {jitter: 0.5}",
            "data.views.puzzle.jitter: must hold keys such as p, brightness, contrast, not '0.5'",
        ),
        ("puzzle: {affine: {degrees: 5}}", "missing key data.views.puzzle.affine.scale"),
        ("puzzle: null", "data.views.puzzle: must hold keys"),
        ("interpolation: nearest", "data.views.interpolation = 'nearest': must be one of linear, cubic"),
        ("flip: 1\nflip: 2", "line 2: flip is given twice"),
        ("", "data.views: must hold keys such as base, puzzle and anchor, not nothing"),
        ("- paper", "data.views: must hold keys such as base, puzzle and anchor, not a list"),
        ("puzzle: [", "is not YAML"),
    ],
)
def test_what_is_wrong_in_a_preset_is_one_line_that_names_file_and_key(file, content, message):
    with pytest.raises(UserError) as error:
        load(file, content)
    assert str(error.value).startswith(str(file.parent / "mine.yaml"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ("nowhere.yaml", "cannot read the view preset nowhere.yaml: No such file or directory"),
        ("papers", "data.views = 'papers': must be one of paper, "),
        ("papers", "or a .yaml file of yours; did you mean 'paper'?"),
        ("{puzzle: {flip: 2}}", "data.views.puzzle.flip = 2.0: must be in [0, 1]"),
        ("{puzzle", "is not YAML"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_one_line_too(file, views, message):
    with pytest.raises(UserError) as error:
        load_config(file, [f"data.views={views}"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_wrong_in_the_configuration_itself_names_its_file(file):
    file.write_text("data: {path: archive, views: {base: paper, puzzle: {flip: 2}}}\ntrain: {epochs: 1}")
    with pytest.raises(UserError, match=r"config\.yaml: data\.views\.puzzle\.flip = 2\.0: must be in \[0, 1\]"):
        load_config(file)


def test_the_page_about_views_has_a_preset_that_loads_and_every_built_in_one(file):
    page = (ROOT / "docs" / "views.md").read_text()
    load(file, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    assert [name for name in PRESETS if f"| `{name}` |" not in page or name not in meaning("data.views")] == []
