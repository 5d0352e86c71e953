"""The backbone: a torchvision ResNet without its classifier, run only as deep as a step needs."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.resnet import ResNet

from fastfgssl.config.schema import ModelConfig
from fastfgssl.runtime.errors import UserError

NUM_TAPS = 3
"""Outputs of layer2, layer3 and layer4: where heads 0, 1 and 2 look."""


class Backbone(nn.Module):
    """A ResNet's stem and four layers under torchvision's names, so that state dicts fit both ways.

    tap_channels: channels of the three taps.
    """

    def __init__(self, resnet: ResNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.tap_channels = tuple(_out_channels(layer) for layer in (self.layer2, self.layer3, self.layer4))

    def forward(self, images: torch.Tensor, deepest_tap: int = NUM_TAPS - 1) -> list[torch.Tensor]:
        """Taps 0 to `deepest_tap` of images [B, 3, H, W]: [B, C, H / s, W / s] each, s = 8, 16, 32; no layer beyond."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        taps = []
        for layer in (self.layer2, self.layer3, self.layer4)[: deepest_tap + 1]:
            x = layer(x)
            taps.append(x)
        return taps

    def up_to(self, deepest_tap: int) -> list[nn.Module]:
        """The modules that `forward(images, deepest_tap)` runs."""
        stem_and_layer1 = [self.conv1, self.bn1, self.layer1]
        return [*stem_and_layer1, *(self.layer2, self.layer3, self.layer4)[: deepest_tap + 1]]


def build_backbone(config: ModelConfig) -> Backbone:
    """Builds the backbone that `config` names and loads its weights. `UserError` if either cannot be had."""
    known = [name for name in list_models(module=None) if _is_resnet(name)]
    if config.backbone not in known:
        near = difflib.get_close_matches(config.backbone, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"model.backbone = {config.backbone!r}: must be a ResNet of torchvision: {', '.join(known)}{hint}"
        )
    resnet = get_model(config.backbone, weights=None)
    if config.width != 1.0:
        _scale_width(resnet, config)
    if config.stem == "small":
        resnet.conv1 = nn.Conv2d(3, resnet.conv1.out_channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        resnet.maxpool = nn.Identity()
    backbone = Backbone(resnet)
    if config.weights != "none":
        _load_weights(backbone, config)
    return backbone


def _is_resnet(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet")) and "quantized" not in name


def _out_channels(layer: nn.Sequential) -> int:
    last = layer[-1]
    return (last.conv3 if hasattr(last, "conv3") else last.conv2).out_channels


def _scale_width(resnet: ResNet, config: ModelConfig) -> None:
    """Rebuilds the stem and the layers with `config.width` times the channels."""
    block = type(resnet.layer1[0])
    channels = [round(config.width * planes) for planes in (64, 128, 256, 512)]
    inner = [int(planes * resnet.base_width / 64) for planes in channels]  # of a group, as torchvision's blocks have it
    # with fewer than 7, torch 2.15's backward of a strided 1x1 convolution in channels-last writes beyond its memory on
    # the CPU (found with glibc's MALLOC_CHECK_=3), and no GPU is quick with them
    if min(inner) < 1 or channels[0] < 8:
        raise UserError(
            f"model.width = {config.width}: leaves {config.backbone} {channels[0]} channels in its first stage, which "
            f"needs 8 or more, and {min(inner)} in a group of its convolutions; make it larger"
        )
    depths = [len(layer) for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)]
    resnet.inplanes = channels[0]
    resnet.conv1 = nn.Conv2d(3, channels[0], kernel_size=7, stride=2, padding=3, bias=False)
    resnet.bn1 = nn.BatchNorm2d(channels[0])
    for number, (planes, depth) in enumerate(zip(channels, depths, strict=True), start=1):
        # torchvision's own builder, which its constructor calls with the four fixed widths
        setattr(resnet, f"layer{number}", resnet._make_layer(block, planes, depth, stride=1 if number == 1 else 2))
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _load_weights(backbone: Backbone, config: ModelConfig) -> None:
    source = config.weights
    if source == "imagenet":
        try:
            state = get_model_weights(config.backbone).DEFAULT.get_state_dict(progress=False)
        except OSError as error:
            raise UserError(
                f"model.weights = imagenet: cannot download them ({error}); put the file into"
                f" {torch.hub.get_dir()}/checkpoints or use model.weights=none"
            ) from None
    else:
        state = read_state_dict(Path(source), "model.weights")
    # a classifier is not part of the backbone; our own checkpoints name the backbone as a part of the network
    state = {name.removeprefix("backbone."): value for name, value in state.items()}
    wanted = backbone.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"model.weights = {source}: lacks {missing[0]} and {len(missing) - 1} more of {config.backbone}"
        )
    wrong = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"model.weights = {source}: {name} is {list(state[name].shape)}, but {config.backbone} has"
            f" {list(wanted[name].shape)} (model.backbone, model.width or model.stem differ)"
        )
    backbone.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)


def read_state_dict(file: Path, key: str) -> dict[str, torch.Tensor]:
    """The tensors of a state-dict file or of one of our checkpoints; runs no code that the file may hold.

    key: what to name in the `UserError` for a file that cannot be read.
    """
    if not file.is_file():
        raise UserError(f"{key} = {file}: no such file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch raises what its unpickler, its zip reader or its legacy reader happen to raise
        raise UserError(f"{key} = {file}: damaged, or not a file of tensors that can be read safely") from None
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{key} = {file}: must hold a state dict (names and tensors)")
    return state
