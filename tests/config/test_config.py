"""Configuration: conversion by type, errors that teach, and a round trip through YAML."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fastfgssl.config.files import config_from_values, config_to_values, list_keys, load_config, write_config
from fastfgssl.config.help import describe_keys
from fastfgssl.runtime.errors import UserError
from helpers.paths import ROOT

MINIMAL = {"data": {"path": "archive"}, "train": {"epochs": 10}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_numbers_are_converted_by_the_type_of_their_key(file):
    file.write_text(
        "data: {path: 2024, image_size: '64'}\nmodel: {grids: [8, 4, 2]}\ntrain: {epochs: 3}\noptim: {lr: 1e-4}"
    )
    config = load_config(file, ["train.batch_size=1e3", "optim.weight_decay=1e-6", "model.weights=none"])
    assert yaml.safe_load("lr: 1e-4") == {"lr": "1e-4"}  # what makes the conversion necessary
    assert config.optim.lr == 1e-4
    assert config.optim.weight_decay == 1e-6
    assert config.train.batch_size == 1000
    assert isinstance(config.train.batch_size, int)
    assert config.data.path == "2024"
    assert config.data.image_size == 64
    assert config.train.epochs == 3.0


def test_overrides_win_over_the_file(file):
    config = load_config(file, ["seed=7", "model.grids=[8,4,2]", "loss.weights=1,1,1,3", "train.heads=[2,all]"])
    assert config.seed == 7
    assert config.model.grids == (8, 4, 2)
    assert config.loss.weights == (1, 1, 1, 3)
    assert config.train.heads == (2, "all")


def test_steps_on_the_command_line_replace_the_epochs_of_the_file(file):
    for empty in ([], ["train.epochs=null"]):
        config = load_config(file, ["train.steps=5", *empty])
        assert (config.train.steps, config.train.epochs) == (5, None)


def test_a_written_configuration_reads_back_equal(file, tmp_path):
    config = load_config(file, ["optim.backbone_lr=1e-5", "train.heads=[0,all]", "data.mean=[0.5,0.5,0.5]"])
    write_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config


def test_every_key_has_a_description():
    text = describe_keys()
    values = config_to_values(load_config_of_defaults())
    for key in values:
        assert f"  {key}\n      " in text


def load_config_of_defaults():
    from fastfgssl.config.schema import Config, DataConfig, TrainConfig

    return Config(data=DataConfig(path="archive"), train=TrainConfig(steps=1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=1e30", "must be at most 2147483647"),
        ("model.grids=[3000000000,8,4]", "model.grids = 3000000000: must be at most 2147483647"),
        ("data.threads=1025", "data.threads = 1025: must be from 0 to 1024"),
        ("data.prefetch=1e6", "data.prefetch = 1000000: must be at most 128"),
        ("train.timeout=1e30", "train.timeout = 1e+30: must be at most 86400 seconds, a day"),
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("batch_size=1", "did you mean 'train.batch_size'?"),
        ("data=archive", "data is a section"),
        ("train.batch_size=many", "train.batch_size = 'many': must be an integer"),
        ("train.batch_size=2.5", "train.batch_size = '2.5': must be an integer"),
        ("train.compile=1", "train.compile = '1': must be true or false"),
        ("optim.lr=nan", "optim.lr = 'nan': must be a number"),
        ("optim.lr=0", "optim.lr = 0.0: must be greater than 0"),
        ("train.schedule=jont", "did you mean 'joint'?"),
        ("train.heads=[all,0]", "train.heads"),
        ("train.heads=[3]", "train.heads"),
        ("model.grids=[4,8,16]", "descending"),
        ("model.grids=[16,8]", "three grids"),
        ("model.grids=[128,8,4]", "at most 64"),
        ("data.image_size=100", "divisible by every grid of model.grids [16, 8, 4]; 16 does not divide it"),
        ("loss.lambd=0", "loss.lambd = 0.0: must be greater than 0"),
        ("loss.lambd=-1e-3", "loss.lambd = -0.001: must be greater than 0"),
        ("model.width=0.5", "model.weights"),
        ("train.steps=0", "train.steps = 0: must be greater than 0"),
        ("train.epochs=null", "give one of the two"),
        ("seed=-1", "seed = -1"),
        ("data.std=[1,1,0]", "data.std"),
        ("train.sinks=[csv,csv]", "train.sinks = ['csv', 'csv']: must be a list of each at most once"),
        ("train.sinks=", "must be a list, such as [tensorboard, csv, wandb]"),
        ("model.grids=", "must be a list, such as [8, 4, 2]"),
        ("data.mean=", "must be a list, such as [0.5, 0.4, 0.3]"),
        ("output", "must be key=value"),
        ("model.grids=[", "not YAML"),
        ("seed=2024-13-45", "seed = '2024-13-45': must be an integer"),
        ("train.steps=1e999", "train.steps = '1e999': must be an integer"),
        ("loss=null", "loss is a section"),
    ],
)
def test_a_bad_value_is_one_clear_line(file, override, message):
    with pytest.raises(UserError) as error:
        load_config(file, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_text_in_place_of_a_list_of_overrides_is_told(file):
    with pytest.raises(UserError, match=r"^overrides = 'seed=1': must be a list of key=value, such as \['seed=1'\]$"):
        load_config(file, "seed=1")


AS_WRITTEN = ["2024-13-45", "2024-01-15", "007", "1.10", "12:30:45", "0x10", "1e3", "yes", "a: b", "[", "'quoted'"]


@pytest.mark.parametrize("text", [*AS_WRITTEN, "runs/a #2"])
def test_text_on_the_command_line_stays_as_it_is(file, text):
    assert load_config(file, [f"output={text}"]).output == text


@pytest.mark.parametrize("text", AS_WRITTEN[:8])
def test_text_in_a_file_stays_as_it_is_and_survives_being_written(file, tmp_path, text):
    file.write_text(f"output: {text}\ndata: {{path: archive}}\ntrain: {{epochs: 1}}")
    config = load_config(file)
    assert config.output == text
    write_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("written", ["true", "True", "yes", "on"])
def test_words_are_converted_by_the_type_of_their_key(file, written):
    config = load_config(file, [f"train.compile={written}", "optim.bias_lr=~", "train.epochs=null", "train.steps=2"])
    assert config.train.compile is True
    assert (config.optim.bias_lr, config.train.epochs) == (None, None)


@pytest.mark.parametrize("section", ["loss:", "loss: null", "loss: {}"])
def test_an_empty_section_means_its_defaults(file, section):
    expected = load_config(file)
    file.write_text(f"{yaml.safe_dump(MINIMAL)}{section}")
    assert load_config(file) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optimm: {}", "unknown key 'optimm'; did you mean 'optim'?"),
        ("optimm: {lr: 1}", "did you mean 'optim.lr'?"),
        ("seed: 1\nseed: 2", "line 6: seed is given twice"),
        ("optim:\n  lr: 1\n  lr: 2", "line 7: lr is given twice"),
        ("train.epochs: 3", "train.epochs is given twice"),
    ],
)
def test_a_file_that_contradicts_itself_or_names_what_is_not_there(file, line, message):
    file.write_text(f"{yaml.safe_dump(MINIMAL)}{line}")
    with pytest.raises(UserError) as error:
        load_config(file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "- a\n- b", "data: [", "data: {path: a}", "\x80", "? [a]\n: b"])
def test_a_bad_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world_size", "fits"),
    [(8, 1, 4, True), (8, 2, 2, True), (6, 1, 4, False), (4, 1, 4, False), (3, 1, 8, False), (8, 4, 2, False)],
)
def test_the_batch_must_split_evenly(file, batch_size, accumulate, world_size, fits):
    train = load_config(file, [f"train.batch_size={batch_size}", f"train.accumulate={accumulate}"]).train
    if fits:
        train.check_world_size(world_size)
    else:
        with pytest.raises(UserError, match=rf"train.batch_size = {batch_size}: must be a multiple of"):
            train.check_world_size(world_size)


def test_the_shipped_configurations_are_valid():
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert files
    for path in files:
        load_config(path, ["data.path=archive"])


def test_what_only_supervised_objectives_have_is_refused_elsewhere():
    values = {"data.path": "archive", "train.steps": 1, "optim.ema_decay": 0.9}
    with pytest.raises(UserError, match=r"optim\.ema_decay = 0\.9: must be 0 with objective=barlow"):
        config_from_values(values | {"objective": "barlow"})
    config_from_values(values | {"objective": "supervised.joint"})
    config_from_values(values | {"objective": "package.module"})


@pytest.mark.parametrize("objective", ["fgssl", "fgssl.joint", "supervised.progressive", "supervised.plain", "byol"])
def test_apex_takes_what_makes_one_update_of_a_batch(objective):
    values = {"data.path": "archive", "train.steps": 1, "optim.backend": "apex", "objective": objective}
    if objective in ("fgssl.joint", "supervised.plain", "byol"):
        config_from_values(values)
    else:
        with pytest.raises(UserError, match=r"optim\.backend"):
            config_from_values(values)


ODD = [
    np.float32(0.5),
    np.int64(2),
    np.bool_(True),
    np.str_("auto"),
    np.array([8, 4, 2]),
    np.array(3),
    torch.tensor(2.0),
    torch.tensor([0.5, 0.25]),
    Path("some/where"),
    Path("nul\0"),
    next(os.scandir(b"/")),  # a path in bytes
    b"bytes",
    16.0,
    2.5,
    10**400,
    True,
    None,
    {"a": 1},
    [np.float64(1), "2", 3, 4],
    object(),
    "nul\0",
]


def test_a_configuration_made_in_python_has_plain_types_or_names_the_key(tmp_path):
    """What is checked is what is saved: numbers of numpy and paths are converted, the rest is refused."""
    known, base, converted = {key.name: key for key in list_keys()}, load_config_of_defaults(), 0
    for name in known:
        section, _, field = name.rpartition(".")
        for value in ODD:
            refusal, config = None, base
            try:
                part = dataclasses.replace(getattr(base, section) if section else base, **{field: value})
                config = dataclasses.replace(base, **{section: part}) if section else part
            except UserError as error:
                refusal = str(error)
            if refusal is not None:
                assert field in refusal, (name, value)
                assert "\n" not in refusal
                continue
            converted += 1
            flat = config_to_values(config)
            for item in flat[name] if isinstance(flat[name], list) else [flat[name]]:
                assert type(item) in (bool, int, float, str, type(None)), (name, value)
            assert config_from_values(json.loads(json.dumps(flat))) == config
    assert converted > 200


def test_a_section_of_another_type_is_named():
    base = load_config_of_defaults()
    with pytest.raises(UserError, match=r"^optim = \{'lr': 1\}: must be an instance of OptimConfig, as load"):
        dataclasses.replace(base, optim={"lr": 1})


def test_a_tilde_in_front_of_a_path_is_the_home_folder(tmp_path, monkeypatch):
    """No shell puts it there behind `data.path=`, nor in a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.yaml").write_text("data: {path: ~/archive, cache: ~/cache}\ntrain: {steps: 1}")
    (tmp_path / "views.yaml").write_text("base: paper")
    config = load_config("~/config.yaml", ["output=~/run", "output_fallback=~/other", "model.weights=~/weights.pth"])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, window=3))
    paths = (config.data.path, config.data.cache, config.output, config.output_fallback, config.model.weights)
    assert paths == tuple(f"{tmp_path}/{name}" for name in ("archive", "cache", "run", "other", "weights.pth"))
    assert load_config("~/config.yaml", ["data.views=~/views.yaml"]).data.views.startswith("{")
    for path in ("s3://bucket/~/archive", "runs/~", "./~", "~nobody-of-this-name/x"):
        assert load_config("~/config.yaml", [f"data.path={path}"]).data.path == path
