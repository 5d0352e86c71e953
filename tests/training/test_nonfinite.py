"""Losses and gradients that are not finite: skipped, counted, and ended where they do not cease."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from fastfgssl.commands import finetune, train
from fastfgssl.config.files import write_config
from fastfgssl.objectives import build_objective, byol, fgssl, register
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.nonfinite import SKIPPED, Guard
from fastfgssl.training.sinks import read_metrics
from helpers.command import run_here
from helpers.ranks import run_on_ranks


def poison(steps: set[int], *, rank: int = 0):
    """An objective whose coarsest head has a loss that is not a number in these steps, on one rank."""

    def build(config, world, *, fresh):
        objective = fgssl.build(config, world, fresh=fresh)
        update, calls = objective.updates[-1], []
        compare = update.compare

        def compare_poisoned(embeddings, batch, *, log):
            calls.append(1)
            if len(calls) in steps and world.rank == rank:
                embeddings = tuple(z * torch.nan for z in embeddings)
            return compare(embeddings, batch, log=log)

        update.compare = compare_poisoned
        return objective

    register("poisoned", build)
    return "poisoned"


def records(config) -> list[dict]:
    return [record for record in read_metrics(Path(config.output)) if "loss" in record]


@pytest.mark.parametrize("optimizer", ["sgd", "lars", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_changes_nothing_and_is_told(make_config, optimizer):
    kept = {"train__checkpoint_every": 1, "train__keep_checkpoints": 9}
    config = make_config(objective=poison({3}), train__heads=[2], train__log_every=4, optim__name=optimizer, **kept)
    assert pretrain(config).steps_done == 4
    states = [load_checkpoint(path)["model"] for path in list_checkpoints(Path(config.output) / "checkpoints")]
    assert [path.name for path in list_checkpoints(Path(config.output) / "checkpoints")] == [
        f"step_{step:09d}.pt" for step in (0, 1, 2, 4)
    ]
    assert all(value.isfinite().all() for state in states for value in state.values())
    told = json.loads((Path(config.output) / "nonfinite_step_3.json").read_text())
    assert (told["step"], told["updates"], len(told["samples_of_rank_0"])) == (3, ["loss_2"], 12)
    assert "--replay 3" in told["replay"]
    assert [record["skipped_steps"] for record in records(config)] == [1]
    pretrain(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=5)))
    assert [record["skipped_steps"] for record in records(config)] == [1, 1]  # a start that goes on knows of it


def test_a_run_without_such_steps_tells_of_none(make_config):
    config = make_config(train__steps=1)
    pretrain(config)
    assert "skipped_steps" not in records(config)[0]
    assert not list(Path(config.output).glob("nonfinite*"))


def test_too_many_in_a_row_go_back_once_with_a_lower_rate(make_config, caplog):
    # the fifth time is that of the diagnosis
    config = make_config(objective=poison({3, 4, 5}), train__heads=[2], train__nonfinite_limit=2, train__steps=5)
    with caplog.at_level("WARNING"):
        assert pretrain(config).steps_done == 5
    assert "to step 4, are not finite: loss_2: " in caplog.text
    assert "back to step 0, once, with 0.1 of the learning rate" in caplog.text
    logged = records(config)
    assert [record["step"] for record in logged] == [1, 2, 3, 4, 5]
    assert logged[0]["lr"] == pytest.approx(0.1 * 0.05)
    last = load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])
    assert last["lr_factor"] == 0.1  # what goes on from it keeps the rate, and does not go back again


def test_then_it_ends_and_says_where(make_config):
    """Weights that explode: the head, and the layer that is not finite first."""
    config = make_config(train__steps=40, train__heads=[2], optim__lr=1e12, train__log_every=2)
    with pytest.raises(UserError, match=r"5 steps in a row, to step \d+, .*: loss_2: the .*; the check"):
        pretrain(config)
    assert [path.name for path in list_checkpoints(Path(config.output) / "checkpoints")] == ["step_000000000.pt"]


def _ranks(world, config):
    poison({2}, rank=1)
    pretrain(config)
    return load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])["step"]


def test_ranks_skip_alike_where_one_alone_met_it(make_config):
    config = make_config(objective="poisoned", train__heads=[2], train__steps=3)
    assert run_on_ranks(_ranks, 2, config, join=False) == [3, 3]
    assert [record.get("skipped_steps") for record in records(config)] == [None, 1, 1]
    assert [record["loss"] is None for record in records(config)] == [False, True, False]  # NaN is not JSON


@pytest.mark.parametrize(
    ("command", "settings", "said"),
    [
        (train, {}, "loss_2: the"),
        (
            finetune,
            {"objective": "supervised.joint", "train__heads": [2, "all"], "evaluate__every": 99},
            "update 0: the",
        ),
    ],
    ids=["train", "finetune"],
)
def test_a_step_is_made_again_and_says_where_it_is_not_finite(make_config, capsys, tmp_path, command, settings, said):
    settings = {"train__steps": 12, "train__heads": [2], "optim__lr": 1e12, "train__nonfinite_limit": 1} | settings
    config = make_config(**settings)
    write_config(config, tmp_path / "config.yaml")
    assert run_here(command.main, "--config", tmp_path / "config.yaml") == 2
    assert "are not finite" in capsys.readouterr().err
    told = json.loads(next(Path(config.output).glob("nonfinite_step_*.json")).read_text())
    step, files = told["step"], sorted(Path(config.output).rglob("*"))
    verb = command.__name__.rpartition(".")[2]
    assert told["replay"] == f"fastfgssl {verb} --config {config.output}/config.yaml --replay {step}"
    assert run_here(command.main, "--config", Path(config.output) / "config.yaml", "--replay", step) == 0
    printed = capsys.readouterr().out
    assert f"step {step}, samples " in printed
    assert said in printed
    assert sorted(Path(config.output).rglob("*")) == files  # it writes nothing
    assert run_here(command.main, "--config", tmp_path / "config.yaml", "--replay", 0) == 2
    assert "no whole checkpoint" in capsys.readouterr().err


def overflow(monkeypatch, build, part: str, *, call: int) -> None:
    """Registers `overflowing`: in that call the first layer of a part of the objective has what float16 cannot hold."""
    calls = []

    def enlarge(module, inputs):
        calls.append(1)
        return (inputs[0] * 1e6,) if len(calls) == call else None

    def build_overflowing(config, world, *, fresh):
        objective = build(config, world, fresh=fresh)
        layers = getattr(objective, part).modules()
        next(layer for layer in layers if isinstance(layer, torch.nn.Conv2d)).register_forward_pre_hook(enlarge)
        return objective

    register("overflowing", build_overflowing)
    small = partial(torch.amp.GradScaler, init_scale=16.0)  # so that nothing else is too large
    monkeypatch.setattr(torch.amp, "GradScaler", small)


def test_a_batch_that_float16_cannot_hold_costs_one_step_and_no_statistics(make_config, monkeypatch):
    """Its forward pass leaves infinities in running means, and lowers the loss scale once."""
    overflow(monkeypatch, fgssl.build, "model", call=5)  # of two calls a step
    config = make_config(
        objective="overflowing", train__heads=[2], train__precision="float16", train__checkpoint_every=1
    )
    assert pretrain(config).steps_done == 4
    states = [load_checkpoint(path) for path in list_checkpoints(Path(config.output) / "checkpoints")]
    assert [state["step"] for state in states] == [0, 2, 3, 4]
    assert all(value.isfinite().all() for state in states for value in state["model"].values())
    before, after, later = (states[place]["model"]["backbone.bn1.running_mean"] for place in (1, 2, 3))
    assert torch.equal(before, after)
    assert not torch.equal(after, later)
    assert states[2]["scaler"]["scale"] == states[1]["scaler"]["scale"] / 2
    assert [record.get("skipped_steps") for record in records(config)] == [None, None, 1, 1]
    assert not list(Path(config.output).glob("nonfinite*"))


def test_averages_and_targets_lose_no_statistics_either(make_config, monkeypatch):
    """They take over what the network's have become, at once."""
    overflow(monkeypatch, byol.build, "target", call=3)  # of two views a step
    small = {"baseline__projector": [16, 8], "baseline__predictor": 8}
    config = make_config(objective="overflowing", train__precision="float16", **small)
    assert pretrain(config).steps_done == 4
    state = load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])
    assert all(value.isfinite().all() for value in state["objective"]["target"].values())
    supervised = make_config(objective="supervised.plain", optim__ema_decay=0.9, supervised__classes=["a", "b"])
    objective = build_objective(supervised, World.alone(torch.device("cpu")), fresh=True)
    guard = Guard(torch.optim.SGD(objective.model.parameters()), objective, torch.amp.GradScaler(enabled=False))
    norm = next(module for module in objective.scored.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.running_mean is not objective.model.state_dict()["backbone.bn1.running_mean"]
    norm.running_mean.fill_(math.inf)
    guard.step(list(objective.model.parameters()), torch.tensor(math.inf))
    assert guard.read(1) == [[SKIPPED]]
    assert norm.running_mean.isfinite().all()
