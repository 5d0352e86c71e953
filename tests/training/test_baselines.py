"""The objectives that FG-SSL is compared with, trained by the unchanged loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastfgssl
from fastfgssl.config.schema import Config
from fastfgssl.pretraining import pretrain
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.sinks import read_metrics

NAMES = ("barlow", "vicreg", "simclr", "byol", "simsiam")
STEPS = 4


@pytest.fixture
def baseline_config(make_config, tmp_path):
    def make(name: str, output: str = "run", **changes) -> Config:
        settings = {
            "objective": name,
            "baseline__projector": [32, 16],
            "baseline__predictor": 8,
            "baseline__grid": 4 if name == "simclr" else 0,
            "baseline__momentum": 0.9,
            "train__steps": STEPS,
        }
        return make_config(output=str(tmp_path / output / name), **settings | changes)

    return make


def last_state(config: Config) -> dict:
    return load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])


def tensors(state: dict) -> dict[str, Tensor]:
    """All weights, running statistics and whatever an objective keeps beside them."""
    return state["model"] | state["objective"].get("target", {})


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_bit_for_bit(baseline_config, name):
    whole, stopped = (baseline_config(name, output, train__precision="bfloat16") for output in ("whole", "stopped"))
    pretrain(whole)
    calls = iter([None, 15])
    assert pretrain(stopped, stop_signal=lambda: next(calls))[:2] == (2, 15)
    assert pretrain(stopped)[:2] == (STEPS, None)
    state, resumed = last_state(whole), last_state(stopped)
    assert (name == "byol") == ("target" in state["objective"])
    assert tensors(state).keys() == tensors(resumed).keys()
    for key, value in tensors(state).items():
        assert torch.equal(value, tensors(resumed)[key]), key
    first, second = (read_metrics(Path(config.output)) for config in (whole, stopped))
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == b["loss"] == a[f"loss_{name}"]
        assert 1 <= a["effective_rank"] <= 11


def test_a_checkpoint_is_scored_and_taken_home(baseline_config, archive_path):
    config = baseline_config("byol", evaluate__every=STEPS, evaluate__images=20)
    pretrain(config)
    record = read_metrics(Path(config.output))[-1]
    assert {name for name in record if name.startswith("score")} == {"score_matching_backbone", "score_knn_backbone"}
    assert set(fastfgssl.evaluate(config.output, archive_path, "knn").results) == {"backbone", "colour"}
    backbone = fastfgssl.load(config.output)
    weights = last_state(config)["model"]["backbone.conv1.weight"]
    assert torch.equal(backbone.state_dict()["backbone.conv1.weight"], weights)
