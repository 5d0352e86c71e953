"""A step without its loop: it never makes the host wait for the device."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastfgssl.config.baseline import BaselineConfig
from fastfgssl.config.schema import STAGES, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from fastfgssl.data.batch import Batch
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.training.step import TrainingStep
from helpers.further import further

MODEL = ModelConfig(backbone="resnet18", weights="none", width=0.125, grids=(8, 4, 2), embedding_dim=24, block_dim=16)
aten = torch.ops.aten
META = torch.device("meta")
"""Stands for a GPU: its tensors have no numbers, so reading one is an error."""


SHOWS_CONSTANTS = pytest.mark.skipif(
    torch.__version__.startswith("2.11."), reason="torch 2.11 shows no operator that makes a constant on this device"
)


class Uploads(TorchDispatchMode):
    """Notices operators that copy between the host and the device; a copy from pageable memory waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor)]
        operator = func.overloadpacket
        crosses = operator in (aten._to_copy, aten.copy_) and len({tensor.device for tensor in tensors}) > 1
        # torch.tensor and new_tensor make their constant on the host
        if crosses or (operator is aten.lift_fresh and result.device == META):
            self.found.append(str(func))
        return result


def make_step(**sections) -> TrainingStep:
    train = {"steps": 1, "batch_size": 12, "precision": "float32"} | sections.pop("train", {})
    config = Config(data=DataConfig(path="none", image_size=32), model=MODEL, train=TrainConfig(**train), **sections)
    world = World.alone(META)
    with META:
        objective = build_objective(config, world)
    return TrainingStep(objective, config, world)


@pytest.fixture
def batch() -> Batch:
    anchor, view, *puzzles = (torch.empty(12, 3, 32, 32, device=META) for _ in range(5))
    return Batch(anchor, view, tuple(puzzles), np.arange(12))


@pytest.fixture(autouse=True)
def on_meta(monkeypatch):
    """Autocast, which float32 does not use, and torch's fused optimisers know no such device."""
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        monkeypatch.setattr(
            f"torch.optim.{kind.__name__}", lambda groups, kind=kind, fused=None, **options: kind(groups, **options)
        )
    monkeypatch.setattr("torch.autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr("torch.is_autocast_enabled", lambda *_: False)


@pytest.mark.parametrize(
    ("schedule", "optimizer", "accumulate", "cache"),
    [
        ("progressive", "lars", 1, False),
        ("progressive", "sgd", 2, True),
        ("joint", "adamw", 2, False),
        *further(("progressive", "adamw", 1, False), ("progressive", "sgd", 2, False)),
        *further(*(("joint", name, 2, True) for name in ("sgd", "lars", "adamw"))),
    ],
)
def test_a_step_never_waits_for_the_device(batch, schedule, optimizer, accumulate, cache):
    step = make_step(
        train={"schedule": schedule, "accumulate": accumulate},
        loss=LossConfig(cache=cache),
        optim=OptimConfig(name=optimizer),
    )
    with Uploads() as uploads:
        for _ in range(2):  # the second finds the optimiser's state
            values = step(batch)
    assert uploads.found == []
    assert set(step.objective.weights) == {f"loss_{stage}" for stage in STAGES} <= values.keys()
    assert all(value.shape == () for value in values.values())


@pytest.mark.parametrize(
    "objective",
    ["barlow", "byol", *further("vicreg", "simclr", "simsiam")],
)
def test_nor_does_one_of_another_objective(batch, objective):
    step = make_step(
        train={"accumulate": 2},
        loss=LossConfig(cache=True),
        objective=objective,
        baseline=BaselineConfig(projector=(32, 16), predictor=8),
    )
    with Uploads() as uploads:
        for progress in (0.5, 1.0):
            values = step(batch, progress=progress)
    assert uploads.found == []
    assert set(step.objective.weights) == {f"loss_{objective}"} <= values.keys()


@pytest.mark.parametrize(
    "upload",
    [
        pytest.param(lambda: torch.zeros(2, device=META).new_tensor(1.0), marks=SHOWS_CONSTANTS),
        pytest.param(lambda: torch.tensor([1.0], device=META), marks=SHOWS_CONSTANTS),
        lambda: torch.zeros(2).to(META),
        lambda: torch.zeros(2, device=META).copy_(torch.zeros(2)),
    ],
)
def test_an_upload_would_be_noticed(upload):
    with Uploads() as uploads:
        upload()
    assert uploads.found


def test_a_read_would_be_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(2, device=META).sum().item()
