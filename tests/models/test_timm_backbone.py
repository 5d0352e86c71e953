"""Networks of timm: taps, what runs and is trained, weights, and a step of each schedule."""

from __future__ import annotations

import builtins
import hashlib
import sys

import numpy as np
import pytest
import torch

from fastfgssl.config.schema import STAGES, Config, DataConfig, ModelConfig, TrainConfig
from fastfgssl.data.batch import Batch
from fastfgssl.models import build_model
from fastfgssl.models.backbone import build_backbone
from fastfgssl.models.batch_norm import synchronise_batch_norm
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.step import TrainingStep
from helpers.further import further
from helpers.ranks import run_on_ranks

timm = pytest.importorskip("timm")
adapt_input_conv = pytest.importorskip("timm.models").adapt_input_conv

FAMILIES = {
    "test_convnext": (8, 16, 32),
    "regnetx_002": (8, 16, 32),
    "test_efficientnet": (8, 16, 32),
    "test_maxvit": (8, 16, 32),  # built for one size
    "test_vit": (16, 16, 16),
}
BRANCHED = "hrnet_w18_small"  # each tap has layers of its own, which no other looks at


def model_config(name: str, **changes) -> ModelConfig:
    values = {"weights": "none", "grids": (8, 4, 2), "embedding_dim": 20, "block_dim": 12}
    return ModelConfig(backbone=f"timm/{name}", **(values | changes))


def build(name: str, image_size: int | None = 64, **changes):
    torch.manual_seed(0)
    return build_model(model_config(name, **changes), image_size)


@pytest.mark.parametrize("name", FAMILIES)
def test_taps_have_the_strides_and_channels_that_are_promised(name):
    backbone = build(name).backbone.eval()
    assert backbone.tap_strides == FAMILIES[name]
    with torch.no_grad():
        taps = backbone(torch.randn(2, 3, 64, 64))
    sides = [64 // stride for stride in backbone.tap_strides]
    assert [tuple(tap.shape) for tap in taps] == [
        (2, channels, side, side) for channels, side in zip(backbone.tap_channels, sides, strict=True)
    ]


def test_a_step_that_is_made_again_is_the_same():
    """Swin of timm drops paths at random unless told not to."""
    backbone, images = build("swin_tiny_patch4_window7_224").backbone.train(), torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone(images)[-1], backbone(images)[-1])


@pytest.mark.parametrize(
    "stages",
    [(1,), STAGES, *further(*(((stage,),) for stage in (0, 2, "all")), ((0, 2),))],
)
@pytest.mark.parametrize("name", [*FAMILIES, BRANCHED])
def test_a_stage_trains_exactly_what_it_says_and_runs_nothing_deeper(name, stages):
    network = build(name)
    ran = set()
    for part in network.modules():
        part.register_forward_hook(lambda module, *_: ran.add(module))
    sum(z.square().sum() for z in network(torch.randn(3, 3, 64, 64), stages)).backward()
    trained = {id(p) for p in network.parameters() if p.grad is not None}
    assert {id(p) for part in network.modules_of(stages) for p in part.parameters()} == trained
    if name != BRANCHED:
        for part in ran:
            assert {id(p) for p in part.parameters(recurse=False)} <= trained
    if stages == (2,):  # nothing is left that no tap needs: no classifier, no layer behind the deepest tap
        assert {id(p) for p in network.backbone.parameters()} <= trained or name == BRANCHED


@pytest.mark.parametrize("name", ["test_convnext", "regnetx_002", "test_vit"])
def test_the_deepest_tap_is_what_the_network_itself_ends_with(name):
    backbone = build(name).backbone.eval()
    original = timm.create_model(name, **({"dynamic_img_size": True} if name == "test_vit" else {})).eval()
    missing, unexpected = original.load_state_dict(backbone.network.state_dict(), strict=False)
    assert unexpected == []
    assert all("head" in key or "fc" in key for key in missing)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        taps, whole = backbone(images), original.forward_features(images)
    if name == "test_vit":
        whole = whole[:, original.num_prefix_tokens :].transpose(1, 2).reshape(taps[-1].shape)
    torch.testing.assert_close(taps[-1], whole)


def test_a_transformer_takes_any_side_and_is_tapped_by_thirds():
    backbone = build("test_vit", None).backbone.eval()  # six blocks, patches of 16 pixels
    ran = []
    for index, block in enumerate(backbone.network.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    for side in (64, 50, 160):
        with torch.no_grad():
            (tap,) = backbone(torch.randn(1, 3, side, side), 0)
        assert tap.shape == (1, 64, -(-side // 16), -(-side // 16))
    assert ran == [0, 1] * 3


def step(name: str, **train) -> tuple[TrainingStep, Batch]:
    train = {"steps": 1, "batch_size": 4, "device": "cpu", "precision": "float32"} | train
    config = Config(data=DataConfig(path="none", image_size=64), model=model_config(name), train=TrainConfig(**train))
    torch.manual_seed(0)
    objective = build_objective(config, World.alone(torch.device("cpu")))
    anchor, view, *puzzles = torch.randn(5, 4, 3, 64, 64).unbind()
    return TrainingStep(objective, config, World.alone(torch.device("cpu"))), Batch(
        anchor, view, tuple(puzzles), np.arange(4)
    )


@pytest.mark.parametrize(
    ("schedule", "precision"),
    [("progressive", "float32"), *further(("joint", "bfloat16"))],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_each_schedule_moves_every_weight(name, schedule, precision):
    make_step, batch = step(name, schedule=schedule, precision=precision)
    model = make_step.objective.model
    before = {key: value.clone() for key, value in model.named_parameters()}
    for _ in range(2):  # the first finds layers that are scaled by nearly 0, or by 0
        values = make_step(batch)
    assert all(value.isfinite() for key, value in values.items() if key.startswith("loss_"))
    unmoved = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    # what a batch norm subtracts again has a gradient of rounding errors alone
    assert len(unmoved) <= 0.05 * len(before), unmoved


@pytest.mark.parametrize("schedule", ["progressive", "joint"])
def test_layouts_agree(schedule):
    losses = []
    for channels_last in (False, True):
        make_step, batch = step("test_efficientnet", schedule=schedule, channels_last=channels_last)
        values = make_step(batch)
        losses.append(torch.stack([values[key] for key in values if key.startswith("loss_")]))
    # the second update on sees what the one before has changed
    torch.testing.assert_close(*losses, rtol=1e-3 if schedule == "joint" else 0.02, atol=1e-3)


def test_a_compiled_network_gives_the_same_losses(monkeypatch):
    # `eager` traces as the real backend does, without the minutes that it generates code for
    compile = torch.compile
    monkeypatch.setattr("torch.compile", lambda *args, **options: compile(*args, backend="eager", **options))
    losses = []
    for compiled in (False, True):
        torch._dynamo.reset()
        make_step, batch = step("test_convnext", compile=compiled)
        values = make_step(batch)
        losses.append(torch.stack([values[key] for key in values if key.startswith("loss_")]))
    torch.testing.assert_close(*losses)


def with_synchronised_norms(world, images):
    torch.manual_seed(0)
    backbone = synchronise_batch_norm(build_backbone(model_config("test_efficientnet"), 64), world).train()
    part = images.chunk(world.size)[world.rank]
    taps = backbone(part)
    return taps[-1].detach(), list(backbone.state_dict())


def test_synchronised_norms_keep_the_activations_that_timm_puts_into_them():
    images = torch.randn(8, 3, 64, 64)
    torch.manual_seed(0)
    alone = build_backbone(model_config("test_efficientnet"), 64).train()
    ranks = run_on_ranks(with_synchronised_norms, 2, images)
    torch.testing.assert_close(torch.cat([tap for tap, _ in ranks]), alone(images)[-1], rtol=1e-3, atol=1e-4)
    assert ranks[0][1] == list(alone.state_dict())


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("convnext_ato", 64, "no network of that name; did you mean 'convnext_atto'"),
        ("convnext_atto.d3_in1k", 64, "no weights 'd3_in1k' of convnext_atto; it has d2_in1k"),
        ("nest_tiny", 224, "its feature maps have strides 4, 8, 16; needed are maps of strides 8, 16 and 32"),
        ("test_maxvit", 60, "takes no images of 60 px .*; its own size is data.image_size=160"),
    ],
)
def test_a_network_that_cannot_be_had_says_why(name, side, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, side)
    assert "\n" not in str(error.value)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts bytes into an empty cache of the Hugging Face hub as the weights of timm's test_convnext; no network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(data: bytes, checksum_of: bytes | None = None):
        folder = tmp_path / "models--timm--test_convnext.r160_in1k"
        blob = folder / "blobs" / hashlib.sha256(checksum_of or data).hexdigest()
        for place in (blob, folder / "refs" / "main", folder / "snapshots" / "a1b2" / "model.safetensors"):
            place.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        (folder / "refs" / "main").write_text("a1b2")
        (folder / "snapshots" / "a1b2" / "model.safetensors").symlink_to(blob)
        return blob

    return put


def published(**changes) -> tuple[torch.nn.Module, bytes]:
    network = timm.create_model("test_convnext")
    return network, pytest.importorskip("safetensors.torch").save(network.state_dict() | changes)


def test_pretrained_weights_come_from_the_hubs_cache(hub):
    network, data = published()
    hub(data)
    backbone = build("test_convnext", weights="imagenet").backbone
    for name, value in backbone.network.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], msg=name)


def test_without_weights_or_network_the_way_out_is_named(hub):
    with pytest.raises(UserError, match=r"timm cannot load test_convnext from timm/.*weights=none") as error:
        build("test_convnext", weights="imagenet")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "html"])
def test_cached_weights_that_are_damaged_name_the_file(hub, damage):
    _, data = published()
    blob = hub({"cut": data[:-100], "empty": b"", "html": b"<html>"}[damage], checksum_of=data)
    with pytest.raises(UserError, match="is damaged or another file: its SHA-256") as error:
        build("test_convnext", weights="imagenet")
    assert str(blob) in str(error.value)
    assert "\n" not in str(error.value)


def test_published_weights_with_nan_name_the_tensor(hub):
    hub(published(**{"stem.0.bias": torch.full((24,), torch.nan)})[1])
    with pytest.raises(UserError, match=r"stem\.0\.bias holds NaN"):
        build("test_convnext", weights="imagenet")


def test_own_weights_of_a_timm_network(tmp_path):
    source = build("test_convnext")
    torch.save({"model": source.state_dict()}, tmp_path / "checkpoint")
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "whole")
    loaded = build("test_convnext", weights=str(tmp_path / "checkpoint"))
    for name, value in source.backbone.state_dict().items():
        torch.testing.assert_close(loaded.backbone.state_dict()[name], value, msg=name)
    build("test_convnext", weights=str(tmp_path / "whole"))


@pytest.mark.parametrize("change", [{"width": 0.5}, {"stem": "small"}])
def test_width_and_stem_are_of_torchvision_alone(change):
    with pytest.raises(UserError, match=r"model\.width and model\.stem change torchvision's ResNets alone"):
        build("test_convnext", **change)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "timm")
    real_import = builtins.__import__

    def no_timm(name, *arguments, **options):
        if name == "timm":
            raise ImportError
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_timm)
    with pytest.raises(UserError, match=r"needs the package timm: pip install 'fastfgssl\[timm\]'"):
        build("test_convnext")


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_gray_images_take_timms_network_of_one_channel_with_the_weights_that_timm_sums(name, tmp_path):
    whole = timm.create_model(name, pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = build(name, weights=str(tmp_path / "whole.pth"), in_channels=1).backbone.eval()
    assert backbone.options["in_chans"] == 1
    key = f"{whole.pretrained_cfg['first_conv']}.weight"
    expected = adapt_input_conv(1, whole.state_dict()[key])
    assert torch.equal(backbone.network.state_dict()[key], expected)
    with torch.no_grad():
        assert [tap.shape[0] for tap in backbone(torch.randn(2, 1, 64, 64))] == [2, 2, 2]
