"""The network: any ResNet, any side, no layer beyond the tap, weights in and out."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastfgssl.config.schema import STAGES, ModelConfig
from fastfgssl.models import build_model
from fastfgssl.runtime.errors import UserError


def model(**changes):
    values = {"backbone": "resnet18", "weights": "none", "width": 0.125, "embedding_dim": 20, "block_dim": 12}
    torch.manual_seed(0)
    return build_model(ModelConfig(**(values | changes)))


RESNETS = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
RESNETS += ["wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"]


@pytest.mark.parametrize("name", RESNETS)
def test_every_resnet_of_torchvision_fits(name):
    network = model(backbone=name, width=1.0, embedding_dim=8, block_dim=8).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 64, 64), "all").shape == (1, 8)


@pytest.mark.parametrize("side", [32, 33, 64, 100])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_any_image_side(side, stem):
    network = model(stem=stem)
    for stage in STAGES:
        assert network(torch.randn(2, 3, side, side), stage).shape == (2, 20)


@pytest.mark.parametrize(
    ("stage", "ran"),
    [
        (0, {"layer2", "block 0", "head 0"}),
        (1, {"layer2", "layer3", "block 1", "head 1"}),
        (2, {"layer2", "layer3", "layer4", "block 2", "head 2"}),
        ("all", {"layer2", "layer3", "layer4", "block 0", "block 1", "block 2", "head 3"}),
        ((0, 2), {"layer2", "layer3", "layer4", "block 0", "block 2", "head 0", "head 2"}),
    ],
)
def test_a_stage_runs_and_trains_only_what_it_needs(stage, ran):
    network = model()
    parts = {name: getattr(network.backbone, name) for name in ("layer2", "layer3", "layer4")}
    parts |= {f"block {i}": block for i, block in enumerate(network.blocks)}
    parts |= {f"head {i}": head for i, head in enumerate(network.heads)}
    called = set()
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    embeddings = network(torch.randn(4, 3, 32, 32), stage)
    total = sum(z.square().sum() for z in (embeddings if isinstance(embeddings, tuple) else (embeddings,)))
    total.backward()
    assert called == ran
    trained = {id(p) for p in network.parameters() if p.grad is not None}
    promised = network.modules_of(stage if isinstance(stage, tuple) else (stage,))
    assert trained == {id(p) for module in promised for p in module.parameters()}


def test_many_stages_at_once_are_those_one_by_one():
    network = model().eval()
    images = torch.randn(3, 3, 48, 48)
    for stage, embedding in zip(STAGES, network(images, STAGES), strict=True):
        torch.testing.assert_close(embedding, network(images, stage))


def test_the_shapes_are_those_of_the_method():
    network = model(backbone="resnet50", width=1.0, embedding_dim=512, block_dim=1024)
    assert network.backbone.tap_channels == (512, 1024, 2048)
    images = torch.randn(1, 3, 224, 224)
    taps = network.backbone.eval()(images)
    assert [tuple(tap.shape[1:]) for tap in taps] == [(512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert [head[1].weight.shape for head in network.heads] == [(512, 1024)] * 3 + [(512, 3072)]


def test_width_scales_every_layer_and_keeps_names():
    narrow, whole = model().backbone.state_dict(), model(width=1.0).backbone.state_dict()
    assert narrow.keys() == whole.keys()
    assert narrow["layer4.1.conv2.weight"].shape == (64, 64, 3, 3)


def test_an_unknown_backbone_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        model(backbone="resnet55", width=1.0)


@pytest.mark.parametrize(("backbone", "width"), [("resnext50_32x4d", 0.15), ("resnet18", 0.0625), ("resnet50", 0.005)])
def test_a_width_that_leaves_no_channels_is_refused(backbone, width):
    with pytest.raises(UserError, match=rf"model.width = {width}: leaves {backbone} .* channels"):
        model(backbone=backbone, width=width)


def test_a_narrow_resnext_that_has_channels_fits():
    assert model(backbone="resnext50_32x4d", width=0.25)(torch.randn(2, 3, 64, 64), "all").shape == (2, 20)


def test_light_blocks_have_the_shapes_of_full_ones_and_a_sixth_of_the_operations():
    operations = {}
    for block in ("full", "light"):
        network = model(block=block, backbone="resnet50", width=1.0, embedding_dim=512, block_dim=1024)
        taps = [torch.randn(1, channels, 28 >> i, 28 >> i) for i, channels in enumerate((512, 1024, 2048))]
        with FlopCounterMode(display=False) as counter:
            shapes = [module(tap).shape for module, tap in zip(network.blocks, taps, strict=True)]
        assert shapes == [(1, 1024)] * 3
        operations[block] = counter.get_total_flops() / 2e9
    assert operations["full"] == pytest.approx(3.91 + 1.03 + 0.28, rel=0.01)
    assert operations["light"] < operations["full"] / 5.5
