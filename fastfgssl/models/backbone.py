"""The backbone: what the network needs of one, and torchvision's ResNets without their classifiers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.resnet import ResNet

from fastfgssl.config.schema import ModelConfig
from fastfgssl.models.weights import cached_download, load_weights
from fastfgssl.runtime.errors import UserError, nearest

NUM_TAPS = 3
"""Feature maps that a backbone gives, fine to coarse: where heads 0, 1 and 2 look."""


class Backbone(nn.Module):
    """A network that is run only as deep as a step needs."""

    tap_channels: tuple[int, ...]
    """Channels of each tap."""
    tap_strides: tuple[int, ...]
    """Pixels of the image between neighbours in each tap: 8, 16, 32, or the patch size of a plain transformer."""

    def forward(self, images: torch.Tensor, deepest_tap: int = NUM_TAPS - 1) -> list[torch.Tensor]:
        """Taps 0 to `deepest_tap` of images [B, 3 or 1, H, W]: [B, C, H / stride, W / stride] each; no layer beyond."""
        raise NotImplementedError

    def modules_of(self, taps: Iterable[int]) -> list[nn.Module]:
        """Modules whose parameters are exactly those that a loss of `taps` has gradients for."""
        raise NotImplementedError

    def stage_of(self, parameter: str) -> int:
        """Which stage a parameter of this network belongs to, by its name: from 0 at the image on."""
        raise NotImplementedError

    def regions(self) -> list[nn.Module]:
        """What torch.compile takes by itself: modules that repeat, which then share their code, or all in one."""
        return [self]


class ResNetBackbone(Backbone):
    """A ResNet's stem and four layers under torchvision's names, so that state dicts fit both ways."""

    tap_strides = (8, 16, 32)

    def __init__(self, resnet: ResNet, *, small_stem: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.tap_channels = tuple(_out_channels(layer) for layer in (self.layer2, self.layer3, self.layer4))
        if small_stem:
            self.tap_strides = (2, 4, 8)

    def forward(self, images: torch.Tensor, deepest_tap: int = NUM_TAPS - 1) -> list[torch.Tensor]:
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        taps = []
        for layer in (self.layer2, self.layer3, self.layer4)[: deepest_tap + 1]:
            x = layer(x)
            taps.append(x)
        return taps

    def modules_of(self, taps: Iterable[int]) -> list[nn.Module]:
        stem_and_layer1 = [self.conv1, self.bn1, self.layer1]
        return [*stem_and_layer1, *(self.layer2, self.layer3, self.layer4)[: max(taps) + 1]]

    def stage_of(self, parameter: str) -> int:
        return int(parameter[len("layer")]) if parameter.startswith("layer") else 0

    def regions(self) -> list[nn.Module]:
        return [block for layer in (self.layer1, self.layer2, self.layer3, self.layer4) for block in layer]


def build_backbone(config: ModelConfig, image_size: int | None = None) -> Backbone:
    """The backbone that `config` names, with its weights.

    image_size: side of the images in pixels, for networks that are built for one size; None takes their own. Raises
    `UserError` for a backbone, or weights, that cannot be had.
    """
    if config.backbone.startswith("timm/"):
        from fastfgssl.models.timm_backbone import build_timm_backbone  # timm is optional

        return build_timm_backbone(config, image_size)
    known = [name for name in list_models(module=None) if _is_resnet(name)]
    if config.backbone not in known:
        raise UserError(
            f"model.backbone = {config.backbone!r}: must be a ResNet of torchvision: {', '.join(known)}; or timm/NAME"
            f" for a network of timm{nearest(config.backbone, known)}"
        )
    resnet = get_model(config.backbone, weights=None)
    if config.width != 1.0:
        _scale_width(resnet, config)
    channels = resnet.conv1.out_channels
    if config.stem == "small":
        _replace_stem(resnet, nn.Conv2d(config.in_channels, channels, kernel_size=3, padding=1, bias=False))
        resnet.maxpool = nn.Identity()
    elif config.in_channels != 3:
        stem = nn.Conv2d(config.in_channels, channels, kernel_size=7, stride=2, padding=3, bias=False)
        _replace_stem(resnet, stem)
    backbone = ResNetBackbone(resnet, small_stem=config.stem == "small")
    if config.weights == "imagenet":
        load_weights(backbone, cached_download(imagenet_url(config.backbone)), config)
    elif config.weights != "none":
        load_weights(backbone, config.weights, config)
    return backbone


def imagenet_url(name: str) -> str:
    """Where torchvision publishes its default weights; the file's name ends with the start of its SHA-256."""
    return get_model_weights(name).DEFAULT.url


def _is_resnet(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet")) and "quantized" not in name


def _out_channels(layer: nn.Sequential) -> int:
    last: Any = layer[-1]
    return (last.conv3 if hasattr(last, "conv3") else last.conv2).out_channels


def _replace_stem(resnet: ResNet, stem: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    resnet.conv1 = stem


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
