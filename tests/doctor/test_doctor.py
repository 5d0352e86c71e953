"""The doctor: what it measures, what it concludes, what it writes, and what it says of bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from fastfgssl.commands.doctor import main
from fastfgssl.config.files import load_config, write_config
from fastfgssl.doctor.advice import Measured, ShortSide, Trial, as_overrides, best_of, judge
from fastfgssl.doctor.machine import busy_cores, examine
from fastfgssl.doctor.rates import Rate, rate_of
from fastfgssl.runtime.console import run_tool
from fastfgssl.runtime.distributed import start_world
from fastfgssl.runtime.errors import UserError


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Calls the tool's `main` as the command line does; returns exit code, stdout and stderr."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other for seconds where another program is at work on the cores

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["doctor.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_tool(main)
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def config_file(make_config, tmp_path) -> Path:
    write_config(make_config(train__heads=[0]), tmp_path / "config.yaml")  # a step of milliseconds
    return tmp_path / "config.yaml"


def test_the_doctor_examines_and_says_what_to_paste(doctor, config_file, tmp_path):
    text, record_file = config_file.read_text(), tmp_path / "doctor.json"
    words = ("data.threads=1", "--seconds", 0.2, "train.steps=5", "--json", record_file)  # in any order
    code, out, _ = doctor("--config", config_file, *words)
    assert code == 0
    machine = ("python", "torch", "DALI", "driver", "plugin", "GPUs", "cores", "load", "memory")
    for name in (*machine, "heaviest batch", "output"):
        assert re.search(rf"^{name} ", out, re.MULTILINE), name
    for name in ("disk", "reader", "decoding", "views", "input path", "training step", "trainer"):
        assert re.search(rf"^{name} +[\d,.]+ ", out, re.MULTILINE), name
    assert out.count("bottleneck: ") == 1
    record = json.loads(record_file.read_text())
    rates = {name: rate["value"] for name, rate in record["images_per_second"].items()}
    assert rates.keys() == {"reader", "decode", "views", "graph", "step", "storage"}
    assert min(rates.values()) > 0
    assert min(record["trainer"]["value"], *rates.values()) > 0
    assert 0 <= record["data_wait"] <= 1
    assert (f"paste: {record['paste']}" in out) == bool(record["overrides"])
    load_config(config_file, record["paste"].split())
    for trial in record["tried"]:
        assert trial["helps"] or not trial["change"].items() <= record["overrides"].items()
    assert config_file.read_text() == text
    assert not (tmp_path / "run").exists()  # the output folder was made to be tried, and is gone


def test_a_plan_prints_every_number_with_its_formula(doctor, config_file, archive_path, tmp_path):
    words = ["gpus=64", "images=50e6", "epochs=100", "link=25e9", f"data.path={archive_path}", "seed=1"]
    words += ["model.in_channels=1"]  # three are examined above
    planned = f"output={tmp_path / 'planned'}"
    options = ("--config", config_file, planned, "--seconds", 0.1, "--json", tmp_path / "plan.json")
    code, out, _ = doctor("--plan", *words, *options)
    assert code == 0
    record = json.loads((tmp_path / "plan.json").read_text())
    assert {"time", "storage bandwidth", "sent by each GPU a step"} < {line["name"] for line in record["plan"]}
    for line in record["plan"]:
        assert re.search(
            rf"^{re.escape(line['name'])} +{re.escape(line['text'])} +{re.escape(line['formula'])}", out, re.M
        )
    assert "link of 2.5e+10 bytes/s" in out
    assert f"{tmp_path / 'planned'}: takes" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --config"),
        (["--config", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["--config", "{config}", "data.thread=1"], "did you mean 'data.threads'"),
        (["--config", "{config}", "data.path=nowhere"], "nowhere is not an archive"),
        (["--config", "{config}", "output=/proc/run"], "cannot write /proc/run"),
        (["--config", "{config}", "output={config}"], "cannot write {config}"),
        (["--config", "{config}", "--ranks", "5"], "train.batch_size = 12: must be a multiple of 5"),
        (["--config", "{config}", "--ranks", "0"], "--ranks 0: must be at least 1"),
        (["--config", "{config}", "--seconds", "0"], "--seconds 0: must be from"),
        (["--config", "{config}", "--json", "/proc/doctor.json"], "cannot write /proc/doctor.json"),
        (
            ["--plan", "gpu=64", "images=1", "epochs=1"],
            "--plan 'gpu=64': it takes gpus=, images=, epochs=, link=; did you mean 'gpus'?",
        ),
        (["--plan", "gpus=64", "images=1"], "--plan needs epochs=..."),
        (["--plan", "gpus=1", "images=1", "epochs=1", "seed=x"], "seed = 'x': must be an integer"),
        (["--config", "{config}", "--apply"], "unrecognized arguments: --apply"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(doctor, config_file, arguments, message):
    code, out, errors = doctor(*(argument.format(config=config_file) for argument in arguments))
    assert code == 2
    assert out == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message.format(config=config_file) in errors


def test_the_doctor_does_not_run_under_torchrun(doctor, config_file, monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert doctor("--config", config_file)[::2] == (
        2,
        "error: a diagnosis is the work of one process: start it without torchrun or srun;"
        " --ranks says how many to plan for\n",
    )


def measured(*, fits=True, shares=False, **changed) -> Measured:
    rates = {"reader": 1e4, "decode": 1000, "views": 1000, "graph": 500, "step": 100, "storage": 1e6} | changed
    return Measured(**{name: Rate(value) for name, value in rates.items()}, fits_in_memory=fits, shares_cores=shares)


@pytest.mark.parametrize(
    ("rates", "bottleneck", "images_per_second"),
    [
        ({}, "step", 100),
        ({"step": 2000, "decode": 600}, "decode", 500),  # 1.7 of 2 ms
        ({"step": 2000, "decode": 5000, "views": 600}, "views", 500),
        ({"step": 2000, "decode": 800, "views": 900}, "decode", 500),  # on a GPU they overlap: each is measured
        ({"step": 2000, "decode": 5000, "views": 5000, "reader": 520}, "reader", 500),
        ({"storage": 50}, "step", 100),  # it fits in memory: the disk is read once
        ({"storage": 50, "fits": False}, "storage", 50),
        ({"storage": 150, "fits": False}, "step", 100),
        ({"shares": True}, "step", 1 / (1 / 100 + 1 / 500)),
        ({"shares": True, "step": 600, "decode": 600}, "decode", 1 / (1 / 600 + 1 / 500)),
    ],
)
def test_the_slowest_part_is_the_bottleneck(rates, bottleneck, images_per_second):
    verdict = judge(measured(**rates))
    assert verdict.bottleneck == bottleneck
    assert verdict.images_per_second == pytest.approx(images_per_second)


def test_only_what_is_faster_beyond_noise_is_suggested():
    def trial(threads: int, after: Rate) -> Trial:
        return Trial({"data.threads": threads}, "trainer", Rate(100, 0.02), after)

    assert best_of([trial(4, Rate(102, 0.0)), trial(8, Rate(120, 0.19))]) is None
    assert best_of([trial(4, Rate(110, 0.02)), trial(8, Rate(120, 0.02))]).change == {"data.threads": 8}
    # a machine that slows down while it is measured slows both
    drifting = Trial({}, "step", rate_of([100, 80, 60]), rate_of([110, 88, 66]))
    assert (drifting.gain, drifting.helps) == (pytest.approx(0.1), True)
    assert as_overrides({"train.compile": True, "data.threads": 8}) == "train.compile=true data.threads=8"


def test_smaller_shards_help_where_the_input_path_holds_the_trainer_back():
    short = ShortSide(256, 450, Rate(500), Rate(1000), 0.5)
    assert short.gain(measured(step=800, shares=False)) == pytest.approx(800 / 500 - 1)
    assert short.gain(measured(step=500, shares=True)) == pytest.approx((1 / 500 + 1 / 500) / (1 / 500 + 1 / 1000) - 1)
    assert not short.helps(measured(step=100, shares=False))


def test_a_plugin_that_cannot_be_built_is_a_finding(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with start_world("cpu") as world:
        finding = next(finding for finding in examine(world) if finding.name == "plugin")
    assert finding.text == "cannot be built"
    assert "no-such-compiler is not on the PATH" in finding.advice


def test_busy_cores_are_those_that_neither_idle_nor_wait(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    before = [100, 0, 50, 1000, 10, 0, 0, 5]
    assert busy_cores(before, [120, 5, 60, 1050, 10, 5, 5, 10]) == pytest.approx(2)  # 50 of 100 ticks
    assert busy_cores(before, before) >= 0


def test_a_share_that_no_decoder_can_take_is_refused(make_config):
    with pytest.raises(UserError, match=r"data.hw_decoder_load = 1.5: must be in \[0, 1\]"):
        make_config(data__hw_decoder_load=1.5)
    assert dataclasses.replace(make_config().data, hw_decoder_load=1.0).hw_decoder_load == 1.0
