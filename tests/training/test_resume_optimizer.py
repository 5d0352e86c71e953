"""Going on from an optimiser's state that was saved under another layout of weights or implementation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fastfgssl.config.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from fastfgssl.data.batch import Batch
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.training.step import TrainingStep

MODEL = ModelConfig(backbone="resnet18", weights="none", width=0.125, grids=(8, 4, 2), embedding_dim=24, block_dim=16)
ALONE = World.alone(torch.device("cpu"))


def make_step(optimizer: str, **of_training) -> TrainingStep:
    train = TrainConfig(**({"steps": 1, "batch_size": 8, "precision": "float32"} | of_training))
    optim = OptimConfig(name=optimizer, lr=1e-3)
    config = Config(data=DataConfig(path="none", image_size=32), model=MODEL, train=train, optim=optim)
    torch.manual_seed(0)
    return TrainingStep(build_objective(config, ALONE), config, ALONE)


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    anchor, view, *puzzles = torch.randn(5, 8, 3, 32, 32, generator=generator)
    return Batch(anchor, view, tuple(puzzles), np.arange(8))


def saved(step: TrainingStep) -> dict:
    return copy.deepcopy(step.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_may_change(batch, optimizer, channels_last):
    """The state keeps belonging to the weights that it was made for, element by element."""
    first = make_step(optimizer, channels_last=not channels_last)
    for _ in range(2):
        first(batch)
    again = make_step(optimizer, channels_last=channels_last)
    again.load_state_dict(saved(first))
    # no gradients of another layout, which round differently: the same ones for both
    for step in (first, again):
        generator = torch.Generator().manual_seed(2)
        for parameter in step.objective.model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        step.optimizer.step()
    for a, b in zip(first.objective.model.parameters(), again.objective.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_state_from_before_optimisers_were_fused(batch, optimizer, precision):
    first = make_step(optimizer, precision=precision)
    first(batch)
    state = saved(first)
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = group["foreach"] = None
    again = make_step(optimizer, precision=precision)
    again.load_state_dict(state)
    assert all(group["fused"] for group in again.optimizer.param_groups)
    for step in (first, again):
        step(batch)
    for a, b in zip(first.objective.model.parameters(), again.objective.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
