"""How a run begins: what it leaves where it cannot, and what it asks for."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint


@pytest.mark.parametrize(
    "mistake",
    [
        {"data__views": "barlow"},
        {"train__sinks": ["wandb"], "train__batch_size": 14},
        {"evaluate__every": 1, "seed": 4},
    ],
    ids=["graph", "sink", "hook"],
)
def test_a_run_that_could_not_begin_does_not_block_the_corrected_one(make_config, monkeypatch, mistake):
    monkeypatch.setitem(sys.modules, "wandb", None)
    # which `paper` does not mind
    depth = "16" if "data__views" in mistake else "8"
    monkeypatch.setattr("fastfgssl.data.stream.depth_of", lambda archive: depth)
    monkeypatch.setattr("fastfgssl.evaluation.online.split_samples", lambda archive: SimpleNamespace(val=[]))
    with pytest.raises(UserError, match=r"earlier release does not allow|wandb is not installed|fewer than two images"):
        pretrain(make_config(**mistake))
    assert pretrain(make_config())[:2] == (4, None)


def test_the_generator_of_who_calls_is_left_as_it_is(make_config):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pretrain(make_config(train__steps=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_run_that_goes_on_needs_no_weights_to_begin_with(make_config, tmp_path):
    config = make_config(train__steps=1)
    pretrain(config)
    state = load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])["model"]
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    file = tmp_path / "weights.pt"
    torch.save(backbone, file)
    settings = {"output": str(tmp_path / "from_file"), "model__weights": str(file)}
    pretrain(make_config(train__steps=1, **settings))
    file.unlink()
    assert pretrain(make_config(train__steps=2, **settings))[:2] == (2, None)
    with pytest.raises(UserError, match=r"weights\.pt"):
        pretrain(make_config(train__steps=1, **settings | {"output": str(tmp_path / "new")}))


def test_a_run_says_what_it_runs_on_and_what_does_not_fit_into_it(make_config, caplog):
    with caplog.at_level("INFO"):
        pretrain(make_config(train__steps=2, train__heads=[0], optim__warmup_epochs=1))
    said = [message for message in caplog.messages if message.startswith(("steps", "optim"))]
    assert len(said) == 2
    assert re.fullmatch(r"steps 1 to 2 of .*run, on the CPU(: torch sees no GPU)?", said[0])
    assert said[1] == (
        "optim.warmup_epochs = 1: is 7 steps, and the run has 2: the learning rate does not reach its peak"
    )
