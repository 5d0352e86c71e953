"""timm: a state dict under timm's names, which `timm.create_model(..., checkpoint_path=FILE)` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastfgssl.export.base import Format, Part, Run, Usage, saved
from fastfgssl.export.torchvision import (
    plain_classifier,
    require_no_blocks,
    require_plain_classifier,
    require_published_resnet,
)
from fastfgssl.models.timm_backbone import TimmBackbone, create_timm
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.versions import version_of


class Timm(Format):
    """The weights in the network of that name: timm's ResNets have torchvision's names for their parts.

    What timm's network has behind the last map and ours has not (a norm, a convolution) is in the file as timm makes
    it, untrained. Features of such a network are taken from the map, as ours are.
    """

    name = "timm"
    suffixes = (".pth", ".pt")

    @property
    def library(self) -> str:
        return f"timm {version_of('timm')}"

    def check(self, part: Part) -> None:
        require_no_blocks(part, self.name)
        if not isinstance(part.network.backbone, TimmBackbone):
            require_published_resnet(part, self.name, in_channels=part.config.model.in_channels)
        _create(part)  # says whether timm has it
        if part.name == "classifier":
            require_plain_classifier(part, self.name)
            if rest := [name for name in _untrained(part) if name not in _classifier_names(_create(part))]:
                raise UserError(
                    f"--format timm: its {_network_name(part)} has layers before the classifier that this one has not"
                    f" ({rest[0]}); take --format onnx, torch.export or safetensors, or --part backbone"
                )

    def write(self, part: Part, file: Path) -> None:
        whole = _create(part)
        state = whole.state_dict() | _backbone_state(part)
        if part.name == "classifier":
            layer = plain_classifier(part)
            assert layer is not None, "`check` has seen to it"
            state |= dict(zip(_classifier_names(whole), (layer.weight, layer.bias), strict=True))
        state = {name: value.detach() for name, value in state.items()}
        file.write_bytes(saved(lambda stream: torch.save(state, stream)))

    def read(self, part: Part, file: Path) -> Run:
        network = _create(part, checkpoint_path=str(file)).eval()
        if part.name == "classifier":
            return lambda images: {"logits": network(images)}
        if (taps := _taps(part)) is None:
            return lambda images: {"features": network(images)}
        return lambda images: {"features": network.forward_intermediates(images, **taps)[-1].mean(dim=(2, 3))}

    def usage(self, part: Part, file: Path) -> Usage:
        options = {"num_classes": len(part.classes), "checkpoint_path": file.name} | _options(part)
        words = "".join(f", {key}={value!r}" for key, value in options.items())
        lines = ["import timm", "", f'network = timm.create_model("{_network_name(part)}"{words}).eval()']
        taps = _taps(part)
        if part.name == "classifier":
            lines.append("logits = network(images)")
        elif taps is None:
            lines.append("features = network(images)")
        else:
            words = "".join(f", {key}={value!r}" for key, value in taps.items())
            lines.append(f"features = network.forward_intermediates(images{words})[-1].mean(dim=(2, 3))")
        rest = _untrained(part) if part.name == "backbone" else []
        if not rest:
            return Usage("\n".join(lines))
        named = ", ".join(f"`{name}`" for name in rest[:6]) + (f" and {len(rest) - 6} more" if len(rest) > 6 else "")
        remark = (
            f"Not trained here, and so not used for `features`: {named}, which timm's network has behind its last map."
        )
        return Usage("\n".join(lines), (remark,))


def _network_name(part: Part) -> str:
    return part.config.model.backbone.removeprefix("timm/")


def _options(part: Part) -> dict[str, Any]:
    """Keyword arguments of `timm.create_model` that the backbone was made with."""
    backbone, channels = part.network.backbone, part.config.model.in_channels
    if isinstance(backbone, TimmBackbone):
        return backbone.options
    return {} if channels == 3 else {"in_chans": channels}


def _create(part: Part, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return create_timm(_network_name(part), num_classes=len(part.classes), **_options(part), **options)


def _backbone_state(part: Part) -> dict[str, Tensor]:
    backbone = part.network.backbone
    return (backbone.network if isinstance(backbone, TimmBackbone) else backbone).state_dict()


def _taps(part: Part) -> dict[str, Any] | None:
    """Arguments of `forward_intermediates` for the last map; None for a ResNet of torchvision, which averages it."""
    backbone = part.network.backbone
    return backbone.intermediates() if isinstance(backbone, TimmBackbone) else None


def _untrained(part: Part) -> list[str]:
    """Parameters of timm's network that no output of ours depends on."""
    backbone = part.network.backbone
    if isinstance(backbone, TimmBackbone):
        trained = backbone.names_of(len(backbone.tap_channels) - 1)
    else:
        trained = {name for name, _ in backbone.named_parameters()}
    return [name for name, _ in _create(part).named_parameters() if name not in trained]


def _classifier_names(whole: Any) -> list[str]:
    """Of weight and bias of the classifier of timm's network; none if it is not one linear layer."""
    layer = whole.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        return []
    module = next(name for name, module in whole.named_modules() if module is layer)
    return [f"{module}.weight", f"{module}.bias"]
