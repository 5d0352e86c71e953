"""Optimisers: groups and rates, LARS against its formula, the schedule's corners."""

from __future__ import annotations

import math
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastfgssl.config.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from fastfgssl.models import build_model
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.optim import LARS, build_optimizer
from fastfgssl.training.plan import warn_of_lengths
from fastfgssl.training.schedule import learning_rate_factor, set_learning_rate


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(backbone="resnet18", weights="none", width=0.125, embedding_dim=8, block_dim=8))


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_every_parameter_is_in_one_group_with_its_rate(model, name):
    config = OptimConfig(name=name, lr=0.1, backbone_lr=0.01, bias_lr=0.001, weight_decay=0.5)
    optimizer = build_optimizer(model, config)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "backbone_weights": (0.01, 0.5),
        "backbone_bias_and_norm": (0.001, 0.0),
        "heads_weights": (0.1, 0.5),
        "heads_bias_and_norm": (0.001, 0.0),
    }
    counted = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(counted) == sorted(id(parameter) for parameter in model.parameters())
    in_backbone = {id(parameter) for parameter in model.backbone.parameters()}
    assert in_backbone == {id(p) for name in groups if name.startswith("backbone") for p in groups[name]["params"]}
    assert all(parameter.ndim > 1 for parameter in groups["heads_weights"]["params"])
    set_learning_rate(optimizer, 0.5)
    assert groups["backbone_weights"]["lr"] == 0.005


def test_rates_default_to_the_one_that_is_given_and_decay_can_be_for_all(model):
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5, decay_bias_and_norm=True))
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.1, 0.5)}


def test_lars_takes_the_step_of_its_formula():
    weight, bias = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([1.0]))
    groups = [{"params": [weight], "weight_decay": 0.1, "trust": 0.02}, {"params": [bias], "trust": None}]
    optimizer = LARS(groups, lr=0.5, momentum=0.9)
    velocity = torch.zeros(2)
    expected_weight, expected_bias, bias_velocity = weight.detach().clone(), 1.0, 0.0
    for _ in range(3):
        weight.grad, bias.grad = torch.tensor([0.6, -0.8]), torch.tensor([2.0])
        optimizer.step()
        update = torch.tensor([0.6, -0.8]) + 0.1 * expected_weight
        velocity = 0.9 * velocity + 0.02 * expected_weight.norm() / update.norm() * update
        expected_weight = expected_weight - 0.5 * velocity
        bias_velocity = 0.9 * bias_velocity + 2.0
        expected_bias -= 0.5 * bias_velocity
        torch.testing.assert_close(weight.detach(), expected_weight)
        assert bias.item() == pytest.approx(expected_bias)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_parameters_may_begin_at_different_steps(name):
    """An update of `progressive` trains some parameters of a group, and the next one some more."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(backbone="resnet18", weights="none", width=0.125, embedding_dim=8, block_dim=8))
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.1, weight_decay=0.5))
    plain = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    options = {"momentum": 0.9} if name == "sgd" else {"betas": (0.9, 0.999)}
    pairs = [(parameter, nn.Parameter(parameter.detach().clone())) for parameter in model.parameters()]
    alone = [
        plain([twin], lr=0.1, weight_decay=0.5 if twin.ndim > 1 else 0.0, fused=False, foreach=False, **options)
        for _, twin in pairs
    ]
    for trained in (2, 3, 1):  # every second parameter, every third, all
        optimizer.zero_grad()
        for index, ((parameter, twin), its_own) in enumerate(zip(pairs, alone, strict=True)):
            if index % trained == 0:
                parameter.grad = torch.randn_like(parameter)
                twin.grad = parameter.grad.clone()
                its_own.step()
        optimizer.step()
    for parameter, twin in pairs:
        torch.testing.assert_close(parameter, twin)


def test_lars_takes_the_loss_scale_without_looking():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2)]
    plain, scaled = (LARS([weight], lr=0.5, weight_decay=0.1) for weight in weights)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for gradient in ([0.6, -0.8], [1.0, 2.0]):
        weights[0].grad = torch.tensor(gradient)
        plain.step()
        scaled.zero_grad()
        scaler.scale((weights[1] * torch.tensor(gradient)).sum()).backward()
        scaler.step(scaled)
        scaler.update()
        torch.testing.assert_close(weights[1], weights[0])
    before = weights[1].detach().clone(), scaled.state[weights[1]]["momentum_buffer"].clone()
    weights[1].grad = torch.tensor([float("inf"), 1.0])
    scaler.step(scaled)
    scaler.update()
    torch.testing.assert_close((weights[1].detach(), scaled.state[weights[1]]["momentum_buffer"]), before)
    assert scaler.get_scale() == 512


@pytest.fixture
def apex(monkeypatch):
    """A module that stands for apex: optimisers that record what they are made with."""

    class Recorder(torch.optim.SGD):
        def __init__(self, params, **options):
            self.options = options
            super().__init__(params, lr=options["lr"])

    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedSGD = type("FusedSGD", (Recorder,), {})
    optimizers.FusedAdam = type("FusedAdam", (Recorder,), {})
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [("sgd", "FusedSGD", {"momentum": 0.8}), ("adamw", "FusedAdam", {"betas": (0.8, 0.999)})],
)
def test_apex_is_taken_where_it_is_asked_for(apex, monkeypatch, model, name, kind, options):
    monkeypatch.setattr("torch.Tensor.is_cuda", True)
    optimizer = build_optimizer(model, OptimConfig(name=name, backend="apex", lr=0.1, momentum=0.8))
    assert type(optimizer).__name__ == kind
    assert optimizer.options == {"lr": 0.1, "set_grad_none": True} | options
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05] * 4


def test_apex_without_a_gpu_is_one_clear_error(apex, model):
    with pytest.raises(UserError, match=r"^optim.backend = 'apex': apex needs a GPU; set optim.backend=torch$"):
        build_optimizer(model, OptimConfig(backend="apex"))


def test_apex_that_is_missing_is_one_clear_error(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "apex.optimizers", None)  # what a module that cannot be imported looks like
    with pytest.raises(UserError, match=r"apex.optimizers cannot be imported; build it from https://github.com/NVIDIA"):
        build_optimizer(model, OptimConfig(backend="apex"))


def test_apex_is_refused_where_it_would_compute_something_else():
    with pytest.raises(UserError, match=r"optim.backend = 'apex': must be torch for lars"):
        OptimConfig(name="lars", backend="apex")
    options = {"data": DataConfig(path="none"), "optim": OptimConfig(backend="apex")}
    with pytest.raises(UserError, match=r"optim.backend = 'apex': must be torch with train.schedule=progressive"):
        Config(train=TrainConfig(steps=1), **options)
    Config(train=TrainConfig(steps=1, heads=(2,)), **options)
    Config(train=TrainConfig(steps=1, schedule="joint"), **options)


def test_lars_moves_weights_that_are_zero():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    LARS([weight], lr=0.5, momentum=0).step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), -0.5))


def test_warm_up_is_linear_and_the_cosine_ends_where_it_should():
    factors = [learning_rate_factor(step, steps=110, warmup_steps=10, final=0.1) for step in range(111)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.55)
    assert factors[110] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_no_warm_up_begins_at_the_peak_and_warm_up_can_be_the_whole_run():
    assert learning_rate_factor(0, steps=10, warmup_steps=0, final=0) == 1
    assert learning_rate_factor(9, steps=10, warmup_steps=0, final=0) == pytest.approx(
        0.5 * (1 + math.cos(0.9 * math.pi))
    )
    assert learning_rate_factor(4, steps=5, warmup_steps=5, final=0) == 1


@pytest.mark.parametrize(
    ("key", "epochs", "warns"),
    [
        ("warmup_epochs", 2, False),
        ("warmup_epochs", 2.5, True),
        ("freeze_epochs", 2, True),
        ("freeze_epochs", 1, False),
    ],
)
def test_a_part_of_the_schedule_that_leaves_nothing_of_the_run_is_told(caplog, key, epochs, warns):
    config = Config(
        data=DataConfig(path="a"), train=TrainConfig(steps=20, batch_size=10), optim=OptimConfig(**{key: epochs})
    )
    warn_of_lengths(SimpleNamespace(config=config, num_samples=100, steps=20))
    assert [f"optim.{key} = {epochs:g}: is" in message for message in caplog.messages] == [True] * warns
