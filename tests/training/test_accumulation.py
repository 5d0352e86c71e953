"""Gradients of an update from micro-batches: with a loss each, or one loss over all of them from cached embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastfgssl.config.schema import STAGES, Config, DataConfig, LossConfig, ModelConfig, TrainConfig
from fastfgssl.data.batch import Batch
from fastfgssl.objectives.base import Objective, Output, Update
from fastfgssl.objectives.fgssl import FineGrained, build_model
from fastfgssl.runtime.distributed import World
from fastfgssl.training.step import TrainingStep
from helpers.ranks import run_on_ranks

ALONE = World.alone(torch.device("cpu"))
MODEL = ModelConfig(backbone="resnet18", weights="none", width=0.125, grids=(8, 4, 2), embedding_dim=24, block_dim=16)


def make_config(accumulate: int, *, cache: bool, schedule="joint") -> Config:
    train = TrainConfig(steps=1, batch_size=12, accumulate=accumulate, precision="float32", schedule=schedule)
    return Config(data=DataConfig(path="none", image_size=32), model=MODEL, loss=LossConfig(cache=cache), train=train)


def gradients(world: World, config: Config, *, batch_norm: bool):
    """Logs, gradients and buffers after one batch of 12 images over all ranks.

    Without `batch_norm` it normalises by its running averages, so that nothing but the loss couples images.
    """
    torch.manual_seed(0)
    model = build_model(config.model).double().train()
    if not batch_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(5, 12, 3, 32, 32, generator=generator, dtype=torch.float64)
    anchor, view, *puzzles = images[:, world.rank * 12 // world.size : (world.rank + 1) * 12 // world.size]
    batch = Batch(anchor, view, tuple(puzzles), np.arange(len(anchor)))
    step = TrainingStep(FineGrained(model, config, world), config, world)
    step.optimizer = _NoUpdates()
    # buffers are each rank's own
    return step(batch, log=True), [p.grad for p in model.parameters()], dict(model.named_buffers())


class _NoUpdates:
    """In the place of an optimiser: gradients of all updates add up, and weights stand still."""

    def zero_grad(self) -> None:
        pass

    def step(self) -> None:
        pass


def require_same(got, want) -> None:
    """Logs and gradients are equal but for rounding."""
    for name, value in want[0].items():
        exact = not name.startswith("effective_rank")  # which is made in float32
        torch.testing.assert_close(got[0][name], value, rtol=1e-9 if exact else 1e-4, atol=1e-9)
    for a, b in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "world_size"),
    [
        ("progressive", 2),
        ("joint", 1),
        pytest.param("progressive", 1, marks=pytest.mark.slow),
        pytest.param("joint", 2, marks=pytest.mark.slow),
    ],
)
def test_cached_embeddings_give_the_gradient_of_one_big_batch(schedule, world_size):
    whole = gradients(ALONE, make_config(1, cache=False, schedule=schedule), batch_norm=False)
    config = make_config(3, cache=True, schedule=schedule)
    ranks = (
        run_on_ranks(gradients_without_batch_norm, world_size, config)
        if world_size > 1
        else [gradients(ALONE, config, batch_norm=False)]
    )
    for rank in ranks:
        require_same(rank, whole)
    apart = gradients(ALONE, replace(config, loss=LossConfig()), batch_norm=False)
    with pytest.raises(AssertionError):
        require_same(apart, whole)


def gradients_without_batch_norm(world, config):
    return gradients(world, config, batch_norm=False)


class Prototypes(Update):
    """A loss with weights of its own, some of them the network's too, over one of two embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(3, 4, bias=False)
        self.prototypes = nn.Parameter(torch.randn(5, 4))

    def embed(self, batch):
        return self.network(batch.anchor.mean(dim=(2, 3))), 2 * batch.anchor[:, 0, 0, 0]

    def compare(self, embeddings, batch, *, log):
        logits = embeddings[0] @ self.prototypes.T + self.network.weight.square().sum()
        loss = nn.functional.cross_entropy(logits + torch.from_numpy(batch.ids % 7)[:, None] * logits, batch.labels)
        return Output(loss, {"loss": loss.detach()})


def prototype_gradients(world: World, accumulate: int, cache: bool):
    """Of one batch of 12 images over all ranks, the second of two: DDP tells at it what it missed at the first."""
    torch.manual_seed(0)
    objective = Objective()
    objective.model = update = Prototypes().double()
    objective.updates = [update]
    images = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = slice(world.rank * 12 // world.size, (world.rank + 1) * 12 // world.size)
    batch = Batch(images, None, (), np.arange(12), torch.arange(12) % 5).rows(rows, rows)
    step = TrainingStep(objective, make_config(accumulate, cache=cache), world)
    step.optimizer = _NoUpdates()
    for _ in range(2):
        update.zero_grad()
        logs = step(batch)
    return logs, [update.network.weight.grad, update.prototypes.grad], {}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_cached_loss_trains_its_own_weights_and_may_leave_embeddings_unused(world_size):
    whole = prototype_gradients(ALONE, 1, False)
    assert all(gradient.abs().max() > 1e-3 for gradient in whole[1])
    if world_size == 1:
        require_same(prototype_gradients(ALONE, 3, True), whole)
        return
    for rank in run_on_ranks(prototype_gradients, 2, 3, True):
        for a, b in zip(rank[1], whole[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_a_cached_batch_moves_running_averages_once():
    cached, apart = (gradients(ALONE, make_config(2, cache=cache), batch_norm=True)[2] for cache in (True, False))
    for name, buffer in cached.items():
        torch.testing.assert_close(buffer, apart[name], rtol=0, atol=0)


def test_losses_of_micro_batches_are_averaged():
    config = make_config(2, cache=False)
    whole = gradients(ALONE, make_config(1, cache=False), batch_norm=True)
    logs, *_ = gradients(ALONE, config, batch_norm=True)
    for head in STAGES:
        torch.testing.assert_close(
            logs[f"loss_{head}"], logs[f"on_diagonal_{head}"] + 0.0051 * logs[f"off_diagonal_{head}"]
        )
        assert not torch.allclose(logs[f"loss_{head}"], whole[0][f"loss_{head}"], rtol=1e-3)


def test_gradients_can_be_sent_as_bfloat16():
    config = make_config(1, cache=False)
    short = replace(config, train=replace(config.train, gradient_dtype="bfloat16"))
    exact, rounded = (run_on_ranks(gradients_without_batch_norm, 2, c) for c in (config, short))
    # each rank's part, which is larger than the mean, and the sum of them are rounded to 8 bits
    a, b = (torch.cat([gradient.flatten() for gradient in of_rank[0][1]]) for of_rank in (exact, rounded))
    assert 2**-10 < (a - b).norm() / a.norm() < 2**-6
    for a, b in zip(rounded[0][1], rounded[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
