"""What an export refuses: a file that is not the network, and whatever a format cannot hold. Each is one clear line."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from fastfgssl.commands.export import main
from fastfgssl.export import checkpoint as exporting
from fastfgssl.export.checkpoint import export_checkpoint
from fastfgssl.export.torch_export import TorchExport
from fastfgssl.export.torchvision import Torchvision
from fastfgssl.runtime.errors import UserError
from helpers.checkpoints import CLASSIFIER, save_untrained
from helpers.command import run_here

WHOLE = {"model__width": 1.0}


class WrongBias(Torchvision):
    """An exporter that gives one batch norm the bias of another, as torch's has done."""

    def write(self, part, file):
        super().write(part, file)
        state = torch.load(file, weights_only=True)
        state["layer2.0.bn1.bias"] = state["layer2.0.bn1.bias"] + state["layer2.0.bn1.running_mean"]
        torch.save(state, file)


class OneBatch(TorchExport):
    """An exporter that takes the batch of its example for the only one."""

    def write(self, part, file):
        example = torch.zeros(2, 3, part.image_size, part.image_size)
        torch.export.save(torch.export.export(part, (example,)), file)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            WrongBias(),
            r"features of a batch of 1 differs by up to [\d.e+-]+, where values reach [\d.]+: more than round",
        ),
        (OneBatch(), r"it fails on a batch of 1: "),
    ],
)
def test_a_file_that_is_not_the_network_is_not_left_there(make_config, tmp_path, monkeypatch, wrong, message):
    checkpoint = save_untrained(make_config(**WHOLE), tmp_path / "run")
    monkeypatch.setitem(exporting.FORMATS, wrong.name, wrong)
    out = tmp_path / f"backbone{wrong.suffixes[0]}"
    out.write_bytes(b"an earlier one")
    with pytest.raises(UserError, match=message) as told:
        export_checkpoint(checkpoint, wrong.name, out)
    assert "\n" not in str(told.value)
    assert out.read_bytes() == b"an earlier one"
    assert {path.name for path in tmp_path.iterdir()} == {"run", out.name}


def test_an_optimiser_that_confuses_biases_is_gone_around(make_config, tmp_path, monkeypatch, caplog):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    whole = torch.onnx.export

    def export(*arguments, optimize, **options):
        program = whole(*arguments, optimize=optimize, **options)
        if optimize:
            bias = next(value for name, value in program.model.graph.initializers.items() if "bias" in name)
            bias.const_value = type(bias.const_value)(bias.const_value.numpy() + 1, name=bias.name)
        return program

    monkeypatch.setattr(torch.onnx, "export", export)
    exported = export_checkpoint(save_untrained(make_config(), tmp_path), "onnx", tmp_path / "backbone.onnx")
    assert exported.difference < 1e-4
    assert "its ONNX optimiser made another network" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        (
            {},
            {"format": "torchvision"},
            "has no resnet18 with model.width = 0.125, only 1.0; take --format safetensors",
        ),
        ({}, {"format": "timm"}, "has no resnet18 with model.width = 0.125, only 1.0"),
        (
            {"model.width": 1.0, "model.stem": "small"},
            {"format": "torchvision"},
            "has no resnet18 with model.stem = small, only imagenet",
        ),
        (
            {"model.width": 1.0},
            {"format": "torchvision", "part": "hierarchy"},
            "no blocks on inner maps; take --part b",
        ),
        ({"model.width": 1.0}, {"format": "timm", "part": "hierarchy"}, "no blocks on inner maps; take --part b"),
        ({}, {"format": "torchvision", "part": "classifier"}, "tells no classes apart; fine-tune it, or take --part"),
        (
            CLASSIFIER,
            {"format": "safetensors", "part": "hierarchy", "out": "a.safetensors"},
            "objective=supervised.plain has no heads; take --part backbone",
        ),
        (
            CLASSIFIER | {"objective": "supervised.progressive", "model.width": 1.0},
            {"format": "torchvision"},
            "this one has classifiers on heads; take --format onnx, torch.export or safetensors, or --part backbone",
        ),
        ({}, {"format": "onx"}, "--format = 'onx': must be one of torchvision, .*; did you mean 'onnx'"),
        ({}, {"format": "torchvision", "part": "bckbone"}, "did you mean 'backbone'"),
        ({}, {"format": "onnx"}, "a.pth: a file of --format onnx ends with .onnx"),
        ({}, {"format": "torchvision", "out": "folder.pth"}, "folder.pth: is no file"),
        ({}, {"format": "torchvision", "scores": ["labels.json"]}, "labels.json: is no report of scores"),
        ({}, {"format": "torchvision", "scores": ["none.json"]}, "cannot read .*none.json: No such file"),
    ],
)
def test_what_a_format_cannot_hold_is_told_in_a_line(make_config, tmp_path, monkeypatch, changes, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "labels.json").write_text("[1, 2]")
    checkpoint = save_untrained(make_config(**changes), tmp_path / "run")
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as told:
        export_checkpoint(checkpoint, **({"out": "a.pth"} | words))
    assert "\n" not in str(told.value)
    assert set(tmp_path.iterdir()) == before


def test_a_network_of_timm_is_not_torchvisions(make_config, tmp_path):
    pytest.importorskip("timm")
    changes = {"model.backbone": "timm/test_convnext", "model.width": 1.0, "data.image_size": 64}
    checkpoint = save_untrained(make_config(**changes), tmp_path)
    with pytest.raises(UserError, match="timm/test_convnext is none of its networks; take --format timm"):
        export_checkpoint(checkpoint, "torchvision", tmp_path / "a.pth")
    checkpoint = save_untrained(make_config(**CLASSIFIER, **changes), tmp_path)
    with pytest.raises(UserError, match=r"test_convnext has layers before the classifier .*\(head.norm"):
        export_checkpoint(checkpoint, "timm", tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("format", "out", "package", "extra"),
    [
        ("onnx", "a.onnx", "onnxruntime", r"fastfgssl\[onnx\]"),
        ("timm", "a.pth", "timm", r"fastfgssl\[timm\]"),
        ("safetensors", "a.safetensors", "safetensors.torch", "safetensors"),
    ],
)
def test_a_package_that_is_missing_is_named(make_config, tmp_path, monkeypatch, format, out, package, extra):
    checkpoint = save_untrained(make_config(**WHOLE), tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs the package {package.partition('.')[0]}: pip install '?{extra}"):
        export_checkpoint(checkpoint, format, tmp_path / out)


def test_weights_with_nan_go_nowhere(make_config, tmp_path):
    config = make_config(**WHOLE)
    checkpoint = save_untrained(config, tmp_path)
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["backbone.layer4.1.bn2.weight"][3] = float("nan")
    torch.save(state, checkpoint)
    with pytest.raises(UserError, match="the network's features of a batch of 1 holds NaN"):
        export_checkpoint(checkpoint, "torchvision", tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()


def test_a_full_disk_is_a_line(make_config, tmp_path, monkeypatch):
    checkpoint = save_untrained(make_config(**WHOLE), tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*a.pth: No space left on device"):
        export_checkpoint(checkpoint, "torchvision", tmp_path / "a.pth")
    assert not list(tmp_path.glob(".partial*"))


def test_the_command_says_what_it_wrote(make_config, tmp_path, capsys):
    checkpoint = save_untrained(make_config(**WHOLE), tmp_path)
    words = ("--checkpoint", checkpoint, "--format", "torchvision")
    assert run_here(main, *words, "--out", tmp_path / "new" / "backbone.pth") == 0
    told = capsys.readouterr().out
    for file in ("backbone.pth", "backbone.pth.md", "backbone.pth.preprocessing.json"):
        assert str(tmp_path / "new" / file) in told
        assert (tmp_path / "new" / file).exists()
    assert "`fc` is zeros" in told
    assert json.loads((tmp_path / "new" / "backbone.pth.preprocessing.json").read_text())["antialias"] is True
    assert run_here(main, *words, "--out", tmp_path / "backbone.onnx") == 2
    assert capsys.readouterr().err.startswith("error: --out ")
