"""Weights for a backbone: where they come from, and files that are not what they should be."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from fastfgssl.config.schema import ModelConfig
from fastfgssl.models import build_model
from fastfgssl.models.backbone import build_backbone
from fastfgssl.models.weights import load_start
from fastfgssl.runtime.errors import UserError


def model(**changes):
    values = {"backbone": "resnet18", "weights": "none", "width": 0.125, "embedding_dim": 20, "block_dim": 12}
    return build_model(ModelConfig(**(values | changes)))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and no network."""

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def publish(monkeypatch, cache: Path, content: object) -> Path:
    """Has `content` in the cache under a name with its checksum, as what torchvision publishes for resnet18."""
    torch.save(content, cache / "new")
    digest = hashlib.sha256((cache / "new").read_bytes()).hexdigest()
    file = (cache / "new").rename(cache / f"resnet18-{digest[:8]}.pth")
    monkeypatch.setattr("fastfgssl.models.backbone.imagenet_url", lambda name: f"https://example.org/{file.name}")
    return file


def test_imagenet_weights_come_from_torchvisions_cache(cache, monkeypatch):
    resnet = get_model("resnet18", weights=None)
    publish(monkeypatch, cache, resnet.state_dict())
    network = model(weights="imagenet", width=1.0)
    torch.testing.assert_close(network.backbone.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)


def test_without_network_the_file_and_its_place_are_named(cache):
    with pytest.raises(UserError, match=r"cannot download https://.*resnet18.* \(no network\); put it there as /.*pth"):
        model(weights="imagenet", width=1.0)


@pytest.mark.parametrize("damage", ["cut", "empty", "html", "one byte"])
def test_a_cached_file_that_is_not_what_was_published_is_one_line(cache, monkeypatch, damage):
    file = publish(monkeypatch, cache, get_model("resnet18", weights=None).state_dict())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes({"cut": data[:-1000], "empty": b"", "html": b"<html>", "one byte": data}[damage])
    with pytest.raises(UserError, match=r"is damaged or another file: its SHA-256 begins with \w+, not") as error:
        model(weights="imagenet", width=1.0)
    assert str(file) in str(error.value)
    assert "delete it, to have it downloaded again" in str(error.value)
    assert "\n" not in str(error.value)


class RunsCode:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("source", ["imagenet", "file"])
def test_no_code_in_a_file_is_run(cache, monkeypatch, tmp_path, source):
    file = publish(monkeypatch, cache, {"conv1.weight": RunsCode(tmp_path / "ran")})
    with pytest.raises(UserError, match="not a file of tensors that can be read safely") as error:
        model(weights="imagenet" if source == "imagenet" else str(file), width=1.0)
    assert str(file) in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("source", ["imagenet", "file"])
def test_weights_with_nan_name_the_tensor(cache, monkeypatch, source, value):
    state = get_model("resnet18", weights=None).state_dict()
    state["layer3.0.conv1.weight"][0, 0, 0, 0] = value
    file = publish(monkeypatch, cache, state)
    with pytest.raises(UserError, match=r"layer3\.0\.conv1\.weight holds NaN or infinite values") as error:
        model(weights="imagenet" if source == "imagenet" else str(file), width=1.0)
    assert file.name in str(error.value)


def test_own_weights_in_every_wrapping(tmp_path):
    source = model()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    network, backbone = source.state_dict(), source.backbone.state_dict()
    files = {
        "backbone": backbone,
        "with a classifier": backbone | {"fc.weight": torch.zeros(2, 2)},
        "network": network,
        "checkpoint": {"model": network, "step": 3},
        "data parallel": {"state_dict": {f"module.{name}": value for name, value in backbone.items()}},
        "compiled": {f"_orig_mod.{name}": value for name, value in backbone.items()},
        "of timm": {"state_dict": backbone, "arch": "resnet18", "args": argparse.Namespace(lr=0.1)},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        loaded = model(weights=str(tmp_path / name))
        for key, value in backbone.items():
            torch.testing.assert_close(loaded.backbone.state_dict()[key], value, msg=f"{name}: {key}")


def test_safetensors_are_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    source = model()
    save_file(source.backbone.state_dict(), tmp_path / "weights.safetensors")
    loaded = model(weights=str(tmp_path / "weights.safetensors"))
    torch.testing.assert_close(loaded.backbone.conv1.weight, source.backbone.conv1.weight)
    whole = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        model(weights=str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; name a file"),
        (b"", "is empty; download or copy it again"),
        (b"garbage", "damaged .*, or not a file of tensors"),
        (b"\n<!DOCTYPE html><title>404</title>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        ({"conv1.weight": torch.zeros(1)}, r"lacks bn1\.weight and"),
        ([1, 2], "must hold a state dict"),
        (torch.zeros(3), "must hold a state dict"),
        ({"conv1.weight": [1, 2]}, "must hold a state dict"),
        ({0: torch.zeros(3)}, "must hold a state dict .*; 0 is no name"),
    ],
)
def test_a_file_that_does_not_fit_is_one_clear_line(tmp_path, content, message):
    file = tmp_path / "weights"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(UserError, match=message) as error:
        model(weights=str(file))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


UNUSABLE = {
    "sparse": (torch.Tensor.to_sparse, "is a sparse tensor; save it as a dense tensor of float32"),
    "quantised": (
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        "is a quantised tensor; save it as a dense tensor of float32",
    ),
    "meta": (lambda value: value.to("meta"), "is a meta tensor, which has a shape and no values; save it"),
    "complex": (lambda value: value.to(torch.complex64), "is of type complex64; save it"),
    "integer": (torch.Tensor.int, "is of type int32; save it as a dense tensor of float32"),
    "too large": (lambda value: value.double() + 1e300, "holds values that are too large for float32"),
    "negative variance": (lambda value: value - 2, "holds negative values, which are no variances"),
}


@pytest.mark.filterwarnings("ignore")  # torch's, that sparse and quantised tensors are of no long standing
@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_tensor_that_is_no_weight_is_named(tmp_path, kind):
    spoil, message = UNUSABLE[kind]
    state = model().backbone.state_dict()
    torch.save(state | {"bn1.running_var": spoil(state["bn1.running_var"])}, tmp_path / "weights")
    with pytest.raises(UserError, match=rf"weights: bn1\.running_var {message}") as error:
        model(weights=str(tmp_path / "weights"))
    assert "\n" not in str(error.value)


def test_weights_of_other_real_types_are_taken(tmp_path):
    state = model().backbone.state_dict()
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2):
        torch.save({name: value.to(dtype) for name, value in state.items()}, tmp_path / "weights")
        weight = model(weights=str(tmp_path / "weights")).backbone.conv1.weight
        torch.testing.assert_close(weight, state["conv1.weight"].to(dtype).float(), rtol=0, atol=0)


def test_a_file_that_is_cut_anywhere_is_one_clear_line(tmp_path):
    torch.save(model().state_dict(), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=r"cut: damaged \(cut, perhaps\)"):
            model(weights=str(tmp_path / "cut"))


def test_weights_of_another_width_name_the_tensor(tmp_path):
    torch.save(model(width=0.25).state_dict(), tmp_path / "wide")
    with pytest.raises(UserError, match=r"conv1.weight is \[16, 3, 7, 7\], but resnet18 has \[8, 3, 7, 7\]"):
        model(weights=str(tmp_path / "wide"))


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_weights_of_three_channels_are_summed_into_one_and_one_is_shared_out(tmp_path, stem):
    """On gray images either network gives the features of the one that it was made of."""
    values = {"backbone": "resnet18", "width": 0.125, "stem": stem}
    of_three = build_backbone(ModelConfig(weights="none", **values)).eval()
    torch.save(of_three.state_dict(), tmp_path / "three.pth")
    of_one = build_backbone(ModelConfig(weights=str(tmp_path / "three.pth"), in_channels=1, **values)).eval()
    assert torch.equal(of_one.conv1.weight, of_three.conv1.weight.sum(dim=1, keepdim=True))
    torch.save(of_one.state_dict(), tmp_path / "one.pth")
    back = build_backbone(ModelConfig(weights=str(tmp_path / "one.pth"), **values)).eval()
    assert back.conv1.weight.shape == of_three.conv1.weight.shape
    gray = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        taps = of_one(gray)
        for other in (of_three, back):
            for ours, theirs in zip(taps, other(gray.expand(-1, 3, -1, -1)), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_imagenet_weights_are_summed_for_gray_images(cache, monkeypatch):
    resnet = get_model("resnet18", weights=None)
    publish(monkeypatch, cache, resnet.state_dict())
    network = model(weights="imagenet", width=1.0, in_channels=1)
    torch.testing.assert_close(network.backbone.conv1.weight, resnet.conv1.weight.sum(dim=1, keepdim=True))


def test_weights_of_another_width_are_not_taken_for_another_number_of_channels(tmp_path):
    torch.save(model(width=0.25).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"conv1.weight is \[16, 3, 7, 7\], but resnet18 has \[8, 1, 7, 7\]"):
        model(weights=str(tmp_path / "wide.pth"), in_channels=1)


def test_weights_under_other_names_say_what_the_file_has(tmp_path):
    state = model().backbone.state_dict()
    torch.save({f"encoder_q.{name}": value for name, value in state.items()}, tmp_path / "moco.pth")
    with pytest.raises(UserError, match=r"but has them all behind 'encoder_q\.': save them without it"):
        model(weights=str(tmp_path / "moco.pth"))
    torch.save({f"block{index}.weight": torch.zeros(1) for index in range(9)}, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"lacks conv1.weight .*; it has block0.weight, block1.weight, block2.weight, ..."
    ):
        model(weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"embedding_dim": 24}, "model.embedding_dim, model.block_dim or model.block differ"),
        ({"block_dim": 16}, "model.embedding_dim, model.block_dim or model.block differ"),
        ({"block": "light"}, "model.embedding_dim, model.block_dim or model.block differ"),
        ({"width": 0.25}, "model.backbone, model.width, model.stem or model.in_channels differ"),
    ],
)
def test_the_keys_are_named_that_a_start_of_other_sizes_differs_in(tmp_path, changes, keys):
    torch.save(model().state_dict(), tmp_path / "start.pt")
    other = model(**changes)
    with pytest.raises(UserError, match=rf"\({keys}\)$"):
        load_start(other, other.backbone, tmp_path / "start.pt", ModelConfig(backbone="resnet18"), new=("classifier",))
