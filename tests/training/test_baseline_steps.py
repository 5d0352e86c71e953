"""Steps of the objectives that FG-SSL is compared with: what is trained, from what, and the same on ranks as on one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastfgssl.config.baseline import BaselineConfig
from fastfgssl.config.schema import Config, DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from fastfgssl.data.batch import Batch
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.step import TrainingStep
from helpers.ranks import run_on_ranks

ALONE = World.alone(torch.device("cpu"))
NAMES = ("barlow", "vicreg", "simclr", "byol", "simsiam")


def make_config(
    name: str, *, accumulate: int = 1, cache: bool = False, lr: float = 1e-3, batch_norm: str = "local", **baseline
) -> Config:
    return Config(
        objective=name,
        data=DataConfig(path="none", image_size=32),
        model=ModelConfig(backbone="resnet18", weights="none", width=0.125),
        loss=LossConfig(cache=cache),
        baseline=BaselineConfig(**{"projector": (32, 16), "predictor": 8, "momentum": 0.9} | baseline),
        train=TrainConfig(steps=4, batch_size=12, accumulate=accumulate, precision="float32", batch_norm=batch_norm),
        optim=OptimConfig(lr=lr),
    )


def step_of(config: Config) -> TrainingStep:
    torch.manual_seed(0)
    return TrainingStep(build_objective(config, ALONE), config, ALONE)


def random_batch(rows: int = 12) -> Batch:
    anchor, view, puzzle = torch.randn(3, rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch(anchor, view, (puzzle,), np.arange(rows))


def steps_of(world: World, configs: list[Config]) -> list[tuple]:
    """The loss of a step of each objective, and what its networks are after it, in float64."""
    found = []
    rows = slice(world.rank * 12 // world.size, (world.rank + 1) * 12 // world.size)
    batch = random_batch().rows(rows, rows)
    batch = batch._replace(anchor=batch.anchor.double(), puzzle_view=batch.puzzle_view.double(), puzzles=())
    for config in configs:
        torch.manual_seed(0)
        objective = build_objective(config, world)
        networks = [network for network in vars(objective).values() if isinstance(network, torch.nn.Module)]
        for network in networks:
            network.double()
        step = TrainingStep(objective, config, world)
        loss = step(batch, progress=0.25)[f"loss_{config.objective}"].item()
        found.append((loss, [network.state_dict() for network in networks]))
    return found


def steps_on_rank(world: World, configs: list[Config]) -> dict[int, list[tuple]]:
    """What groups of one, two and three ranks find, by their number."""
    found = {}
    for size in (1, 2, 3):
        group = dist.new_group(list(range(size)))  # by all ranks, also those that are not in it
        if world.rank < size:
            found[size] = steps_of(replace(world, size=size, group=group), configs)
    return found


def test_ranks_train_each_whole_network_as_one_process_does():
    """Backbone, projector, predictor, BYOL's target and the running statistics of all, with batch_norm=sync."""
    configs = [make_config(name, batch_norm="sync") for name in NAMES]
    alone, by_rank = steps_of(ALONE, configs), run_on_ranks(steps_on_rank, 3, configs)
    for size in (1, 2, 3):
        ranks = [found[size] for found in by_rank if size in found]
        assert len(ranks) == size
        for number, (name, (loss, networks)) in enumerate(zip(NAMES, alone, strict=True)):
            assert len(networks) == (2 if name == "byol" else 1)
            # the reported loss is the mean over ranks
            assert loss == pytest.approx(np.mean([rank[number][0] for rank in ranks]), rel=1e-9)
            for _, same in (rank[number] for rank in ranks):
                for network, of_rank in zip(networks, same, strict=True):
                    for key, value in network.items():
                        torch.testing.assert_close(of_rank[key], value, rtol=1e-9, atol=1e-12, msg=f"{name} {key}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cache", [False, True], ids=["means", "cache"])
def test_gradients_come_from_micro_batches_to_exactly_what_an_update_trains(name, cache):
    step = step_of(make_config(name, accumulate=2, cache=cache, lr=1e-12))
    (update,), batch = step.objective.updates, random_batch()
    parts = [update.embed(part) for part in batch.chunk(2)]
    if cache:  # one loss over both
        loss = update.compare(tuple(map(torch.cat, zip(*parts, strict=True))), batch, log=False).loss
    else:
        loss = torch.stack([update.compare(part, batch, log=False).loss for part in parts]).mean()
    weights = list(update.parameters())
    wanted = torch.autograd.grad(loss, weights)
    step(batch)
    trained = {id(weight) for weight in weights}
    for key, weight in step.objective.model.named_parameters():
        assert (weight.grad is not None) == (id(weight) in trained), key
    assert len(trained) == len(list(step.objective.model.parameters()))
    for weight, gradient in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_no_gradient_goes_to_what_is_predicted(name):
    (update,) = step_of(make_config(name)).objective.updates
    leaves = [z.detach().requires_grad_() for z in update.embed(random_batch())]
    loss = update.compare(tuple(leaves), random_batch(), log=False).loss
    *targets, p1, p2 = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert targets == [None, None]
    assert p1.abs().sum() > 0
    assert p2.abs().sum() > 0


def test_the_target_of_byol_follows_by_the_schedule_of_its_paper():
    """Section 3.2: tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2; and the network predicts the target's views."""
    step, batch = step_of(make_config("byol", lr=0.5)), random_batch()
    byol, before = step.objective, {}
    for k, tau in ((1, 1 - 0.1 * (2**-0.5 + 1) / 2), (2, 0.95), (4, 1.0)):
        before = {name: weight.clone() for name, weight in byol.target.named_parameters()}
        step(batch, progress=k / 4)
        online = dict(byol.model.named_parameters())
        assert online.keys() - before.keys() == {name for name in online if name.startswith("predictor.")}
        for name, weight in byol.target.named_parameters():
            want = tau * before[name] + (1 - tau) * online[name]
            torch.testing.assert_close(weight, want, rtol=1e-5, atol=1e-6)
            assert weight.grad is None
    # batch norm of the target is that of the batch
    z1, *_ = byol.updates[0].embed(batch)
    by_batch = byol.target(batch.anchor)
    torch.testing.assert_close(z1, by_batch)
    byol.target.eval()
    assert not torch.allclose(byol.target(batch.anchor), by_batch, rtol=1e-2)


def test_byol_compares_the_prediction_of_each_view_with_the_target_of_the_other():
    (update,) = step_of(make_config("byol")).objective.updates
    embeddings = update.embed(random_batch())
    z1, z2, p1, p2 = (z / z.norm(dim=1, keepdim=True) for z in embeddings)
    wanted = ((p1 - z2).square().sum(dim=1) + (p2 - z1).square().sum(dim=1)).mean()
    torch.testing.assert_close(update.compare(embeddings, random_batch(), log=False).loss, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_puzzle_takes_the_place_of_the_view(name):
    batch = random_batch()
    whole, puzzle = (step_of(make_config(name, grid=grid)).objective for grid in (0, 4))
    assert whole.needs[:3] == (True, True, ())
    assert puzzle.needs[:3] == (True, False, (4,))
    # what a batch holds is what its objective needs
    of_puzzle = puzzle.updates[0].embed(batch._replace(puzzle_view=None))
    as_view = whole.updates[0].embed(Batch(batch.anchor, batch.puzzles[0], (), batch.ids))
    for a, b in zip(of_puzzle, as_view, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("grid", 5, r"baseline.grid = 5: must be a divisor of data.image_size = 32"),
        ("grid", 1, r"baseline.grid = 1: must be from 2 to 64, or 0"),
        ("projector", [64, 0], r"baseline.projector = \[64, 0\]: must be at least 1 each"),
        ("weights", [25, 1], r"baseline.weights = \[25.0, 1.0\]: must be three numbers"),
        ("momentum", 1.5, r"baseline.momentum = 1.5: must be in \[0, 1\]"),
        ("temperature", 0, r"baseline.temperature = 0.0: must be greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_line(key, value, message):
    with pytest.raises(UserError, match=message):
        build_objective(make_config("vicreg", **{key: value}), ALONE)
