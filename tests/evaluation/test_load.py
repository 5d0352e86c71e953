"""A checkpoint as a backbone with its transform, for use elsewhere."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.pretrained import load, load_pretrained
from fastfgssl.evaluation.transform import PlainTransform
from fastfgssl.runtime.errors import UserError
from helpers.checkpoints import save_untrained
from helpers.images import files_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_features_are_those_that_are_evaluated(make_config, archive_path, tmp_path):
    path = save_untrained(make_config(), tmp_path)
    backbone = load(path)
    archive = Archive.open(archive_path)
    model, config, *_ = load_pretrained(path)
    ids = np.arange(6)
    names = archive.columns(ids, ("id",))["id"]
    _, expected = FeatureExtractor(model, config, archive, torch.device("cpu"), 6).plain(ids)
    found = []
    for name in names:
        with Image.open(files_of(archive_path)[name]) as image:
            found.append(backbone.transform(image))
    with torch.no_grad():
        features = backbone(torch.stack(found))
    assert features.shape == (6, backbone.num_features)
    # decoders and resizes differ by a grey level here and there: little beside what tells images apart
    expected = expected["backbone"][:]
    assert (features - expected).norm(dim=1).max() < 0.15 * torch.cdist(expected, expected).median()


def test_the_backbone_is_ready_to_use_and_to_train_on(make_config, tmp_path):
    backbone = load(str(save_untrained(make_config(), tmp_path)))
    assert not any(part.training for part in backbone.modules())
    assert backbone.step == 1
    images = torch.randn(2, 3, 64, 64)
    maps = backbone.maps(images)
    assert [tuple(found.shape[2:]) for found in maps] == [(8, 8), (4, 4), (2, 2)]
    torch.testing.assert_close(backbone(images), maps[-1].mean(dim=(2, 3)))
    backbone(images).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_a_checkpoint_cannot_have_a_module_run_that_nobody_has_named(make_config, tmp_path, monkeypatch):
    """As one from the web does, beside which a file of Python lies."""
    path = save_untrained(make_config(), tmp_path)
    state = torch.load(path, weights_only=True)
    state["config"]["objective"] = "lying.beside"
    torch.save(state, path)
    (tmp_path / "lying").mkdir()
    (tmp_path / "lying" / "beside.py").write_text("from fastfgssl.objectives.fgssl import build as build\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"its objective is lying.beside, .* set FASTFGSSL_OBJECTIVES=lying.beside$"):
        load(path)
    assert "lying" not in sys.modules
    monkeypatch.setenv("FASTFGSSL_OBJECTIVES", "other.one,lying.beside")
    load(path)


def test_loading_draws_no_numbers_of_the_caller(make_config, tmp_path):
    path = save_untrained(make_config(), tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(path)
    assert torch.equal(torch.rand(3), expected)


def test_a_runs_folder_gives_its_newest_checkpoint_that_is_whole(make_config, tmp_path):
    config = make_config()
    for step in (1, 2):
        save_untrained(config, tmp_path / "run" / "checkpoints", step=step)
    assert load(tmp_path / "run").step == 2
    assert load(tmp_path / "run" / "checkpoints").step == 2
    (tmp_path / "run" / "checkpoints" / "step_000000003.pt").write_bytes(b"cut")
    assert load(tmp_path / "run").step == 2
    with pytest.raises(UserError, match="no checkpoint in it; name a checkpoint"):
        load(tmp_path)


def test_a_network_that_is_built_for_one_size_comes_back_in_it(make_config, tmp_path):
    pytest.importorskip("timm")
    config = make_config(
        **{"model.backbone": "timm/test_maxvit", "model.width": 1.0, "data.image_size": 64, "model.grids": [8, 4, 2]}
    )
    backbone = load(save_untrained(config, tmp_path))
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, backbone.num_features)


@pytest.mark.parametrize("size", [(48, 48), (37, 90)])
def test_the_transform_resizes_as_pillow_does_and_normalises(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(pixels)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), np.float32) / 255
    expected = torch.from_numpy((expected - MEAN) / STD).permute(2, 0, 1).float()
    transform = PlainTransform(32, MEAN, STD)
    found = transform(image)
    assert found.shape == (3, 32, 32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1 / 255 / min(STD))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    torch.testing.assert_close(transform(tensor), found)
    torch.testing.assert_close(transform(torch.stack([tensor, tensor]))[1], found)


def test_kinds_of_images_that_show_the_same_give_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    transform = PlainTransform(16, MEAN, STD)
    expected = transform(Image.fromarray(np.stack([pixels] * 3, axis=2)))
    opaque = Image.fromarray(np.stack([pixels] * 3 + [pixels // 2], axis=2))
    sixteen = Image.fromarray(pixels.astype(np.uint16) * 257)
    for image in (Image.fromarray(pixels), opaque, sixteen, torch.from_numpy(pixels)[None]):
        torch.testing.assert_close(transform(image), expected)
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
    turned.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    torch.testing.assert_close(transform(turned), expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 8, 8), "takes a PIL image or a tensor of uint8 or uint16, not torch.float32"),
        (np.zeros((8, 8, 3), np.uint8), "takes a PIL image or a tensor of uint8 or uint16, not ndarray"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"takes tensors \[3, H, W\] or \[B, 3, H, W\], not \[8, 8, 3\]"),
        (Image.new("F", (4, 4)), "32-bit floats"),
    ],
)
def test_other_images_are_refused_in_a_line(image, message):
    with pytest.raises(UserError, match=message):
        PlainTransform(16, MEAN, STD)(image)
