"""Every format is loaded by its own library, by the code on the model card, and gives what the network gives."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from fastfgssl.evaluation.pretrained import load, load_pretrained
from fastfgssl.export.checkpoint import FORMATS, export_checkpoint
from fastfgssl.runtime.errors import UserError
from helpers.checkpoints import CLASSES, CLASSIFIER, save_untrained
from helpers.images import gradient, gradient_16_bit

WHOLE = {"model__width": 1.0, "model__block_dim": 8, "model__embedding_dim": 12}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def run_card(exported, images: torch.Tensor) -> dict:
    """What the first block of code on the model card defines, run beside the file."""
    code = re.search(r"```python\n(.*?)```", exported.card.read_text(), re.DOTALL)[1]
    defined = {"images": images}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.chdir(exported.file.parent)
        exec(code, defined)
    return defined


def require_equal(found, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("format", ["torchvision", "timm"])
def test_a_resnet_goes_to_libraries_that_have_it(make_config, tmp_path, images, format):
    if format == "timm":
        pytest.importorskip("timm")
    checkpoint = save_untrained(make_config(**WHOLE), tmp_path)
    exported = export_checkpoint(checkpoint, format, tmp_path / "backbone.pth")
    assert exported.part == "backbone"
    with torch.no_grad():
        require_equal(run_card(exported, images)["features"], load(checkpoint)(images))
    state = torch.load(exported.file, weights_only=True)
    if format == "torchvision":
        assert state["fc.weight"].shape == (1000, 512)
        assert not state["fc.weight"].any()
        assert "`fc` is zeros" in exported.card.read_text()
    else:
        assert not any(name.startswith("fc") for name in state)


@pytest.mark.parametrize("format", ["torchvision", "timm"])
def test_its_classifier_goes_along(make_config, tmp_path, images, format):
    if format == "timm":
        pytest.importorskip("timm")
    checkpoint = save_untrained(make_config(**CLASSIFIER, **WHOLE), tmp_path)
    exported = export_checkpoint(checkpoint, format, tmp_path / "classifier.pth")
    assert exported.part == "classifier"
    with torch.no_grad():
        require_equal(run_card(exported, images)["logits"], load(checkpoint)(images))
    # and its backbone alone, on request
    exported = export_checkpoint(checkpoint, format, tmp_path / "backbone.pth", part="backbone")
    with torch.no_grad():
        require_equal(run_card(exported, images)["features"], load(checkpoint).backbone(images))


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_maxvit", "test_efficientnet"])
def test_a_network_of_timm_goes_home(make_config, tmp_path, name):
    timm = pytest.importorskip("timm")
    network = {"model.backbone": f"timm/{name}", "model.width": 1.0, "data.image_size": 64}
    checkpoint = save_untrained(make_config(**network), tmp_path)
    exported = export_checkpoint(checkpoint, "timm", tmp_path / "backbone.pth")
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        require_equal(run_card(exported, images)["features"], load(checkpoint)(images))
    named = set(re.findall(r"`([\w.]+)`", " ".join(exported.remarks))) - {"features"}
    # named are layers that it has, and that training has not reached
    assert named <= set(timm.create_model(name, num_classes=0).state_dict())
    assert bool(named) == (name != "test_vit")


def test_a_classifier_goes_to_timm_where_nothing_stands_between(make_config, tmp_path):
    pytest.importorskip("timm")
    network = CLASSIFIER | {"model.width": 1.0, "data.image_size": 64}
    checkpoint = save_untrained(make_config(**network, **{"model.backbone": "timm/regnetx_002"}), tmp_path)
    exported = export_checkpoint(checkpoint, "timm", tmp_path / "classifier.pth")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        require_equal(run_card(exported, images)["logits"], load(checkpoint)(images))


@pytest.mark.parametrize(
    ("format", "part", "backbone"),
    [
        # whose biases torch's exporter has confused (pytorch#166797)
        pytest.param("onnx", "hierarchy", "resnet50", marks=pytest.mark.slow),
        ("onnx", "classifier", "resnet18"),
        ("torch.export", "hierarchy", "resnet18"),
    ],
)
def test_a_graph_runs_for_any_batch(make_config, tmp_path, images, format, part, backbone):
    if format == "onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
    changes = CLASSIFIER | {"objective": "supervised.progressive"} if part == "classifier" else {}
    checkpoint = save_untrained(make_config(**changes, model__backbone=backbone), tmp_path)
    suffix = {"onnx": ".onnx", "torch.export": ".pt2"}[format]
    exported = export_checkpoint(checkpoint, format, tmp_path / f"part{suffix}", part=part)
    model = load_pretrained(checkpoint).model.eval()
    for batch in (images, images[:1]):
        found = run_card(exported, batch)
        with torch.no_grad():
            features = model.features(batch)
            if part == "classifier":
                require_equal(found["logits"], model.predict(batch))
            elif part == "backbone":
                require_equal(found["features"], features["backbone"])
            else:
                heads = [features[f"head {number}"] for number in range(3)]
                for number, head in enumerate(heads):
                    require_equal(found[f"head_{number}"], head)
                require_equal(found["all"], torch.cat(heads, dim=1))
    if format == "onnx":
        facts = found["session"].get_modelmeta().custom_metadata_map
        assert json.loads(facts["preprocessing"])["size"] == [32, 32]
        assert ("classes" in facts) == (part == "classifier")
        (given,) = found["session"].get_inputs()
        assert given.shape[0] != 2  # a name, as the batch may be of any size


@pytest.mark.parametrize("part", ["backbone", "hierarchy", "classifier"])
def test_safetensors_hold_each_part(make_config, tmp_path, images, part):
    safetensors = pytest.importorskip("safetensors")
    changes = CLASSIFIER | {"objective": "supervised.joint"} if part == "classifier" else {}
    checkpoint = save_untrained(make_config(**changes, **WHOLE), tmp_path)
    exported = export_checkpoint(checkpoint, "safetensors", tmp_path / "part.safetensors", part=part)
    weights = run_card(exported, images)["weights"]
    if part == "backbone":  # under torchvision's names
        from torchvision.models import resnet18

        network = resnet18()
        assert network.load_state_dict(weights, strict=False).missing_keys == ["fc.weight", "fc.bias"]
        network.fc = torch.nn.Identity()
        with torch.no_grad():
            require_equal(network.eval()(images), load(checkpoint)(images))
    else:
        expected = load_pretrained(checkpoint).model.state_dict()
        assert set(weights) == set(expected)
        assert all(weights[name].equal(expected[name]) for name in expected)
    with safetensors.safe_open(exported.file, framework="pt") as file:
        facts = file.metadata()
    assert facts["backbone"] == "resnet18"
    assert json.loads(facts.get("classes", "[]")) == (list(CLASSES) if part == "classifier" else [])


@pytest.mark.parametrize(
    ("format", "backbone"),
    [
        ("timm", "resnet18"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("safetensors", "resnet18"),
                ("torch.export", "resnet18"),
                ("onnx", "resnet18"),
                ("timm", "timm/test_convnext"),
            )
        ),
    ],
)
def test_a_network_of_one_channel_goes_along(make_config, tmp_path, format, backbone):
    """The code of its card makes images of one channel, as `load` does, also of colour ones."""
    if "timm" in format + backbone:
        pytest.importorskip("timm")
    settings = WHOLE | {"model__backbone": backbone, "model__in_channels": 1, "data__image_size": 64}
    checkpoint = save_untrained(make_config(**settings), tmp_path)
    exported = export_checkpoint(checkpoint, format, tmp_path / f"gray{FORMATS[format].suffixes[0]}")
    loaded, card = load(checkpoint), exported.card.read_text()
    assert "float32 [B, 1, S, S]" in card
    made = {}
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1], made)
    for picture in (gradient(), gradient().convert("L"), gradient_16_bit()):
        difference = (made["transform"](picture) - loaded.transform(picture)).abs()
        assert difference.max() < 1.01 / 255 / 0.226  # a level: luminance is rounded in one way or another
        assert difference.mean() < 1e-3
    pixels = torch.from_numpy(np.array(gradient())).permute(2, 0, 1)
    torch.testing.assert_close(made["transform"](pixels), loaded.transform(pixels), rtol=0, atol=0.01)
    if format != "safetensors":
        images = torch.randn(3, 1, 64, 64)
        with torch.no_grad():
            require_equal(run_card(exported, images)["features"], loaded(images))


def test_torchvision_has_no_network_of_one_channel(make_config, tmp_path):
    checkpoint = save_untrained(make_config(**WHOLE, model__in_channels=1), tmp_path)
    with pytest.raises(UserError, match=r"has no resnet18 with model.in_channels = 1, only 3; take --format timm"):
        export_checkpoint(checkpoint, "torchvision", tmp_path / "backbone.pth")
