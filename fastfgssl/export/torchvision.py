"""torchvision: a state dict that its own ResNet of that name loads with `strict=True`."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model

from fastfgssl.export.base import Format, Part, Run, Usage, quoted, saved
from fastfgssl.models.backbone import ResNetBackbone
from fastfgssl.runtime.errors import UserError

_IMAGENET_CLASSES = 1000


class Torchvision(Format):
    """The weights under torchvision's names, with the `fc` that its networks insist on.

    classifier: `fc` is the classifier. backbone: `fc` is zeros for 1,000 classes, so that the network loads as it
    comes, and what is forgotten to be replaced predicts nothing.
    """

    name = "torchvision"
    suffixes = (".pth", ".pt")

    @property
    def library(self) -> str:
        return f"torchvision {torchvision.__version__}"

    def check(self, part: Part) -> None:
        require_no_blocks(part, self.name)
        require_published_resnet(part, self.name)
        if part.name == "classifier":
            require_plain_classifier(part, self.name)

    def write(self, part: Part, file: Path) -> None:
        state = part.network.backbone.state_dict() | self._fc(part)
        file.write_bytes(saved(lambda stream: torch.save(state, stream)))

    def read(self, part: Part, file: Path) -> Run:
        network = get_model(part.config.model.backbone, weights=None, num_classes=self._num_classes(part)).eval()
        network.load_state_dict(torch.load(file, weights_only=True), strict=True)
        if part.name == "backbone":
            network.fc = nn.Identity()
        return lambda images: {next(iter(part.width)): network(images)}

    def usage(self, part: Part, file: Path) -> Usage:
        classes = f"num_classes={len(part.classes)}" if part.classes else ""
        lines = [
            "import torch",
            "import torchvision",
            "",
            f"network = torchvision.models.{part.config.model.backbone}({classes})",
            f"network.load_state_dict(torch.load({quoted(file.name)}, weights_only=True), strict=True)",
        ]
        if part.classes:
            return Usage("\n".join([*lines, "logits = network.eval()(images)"]))
        lines += ["network.fc = torch.nn.Identity()", "features = network.eval()(images)"]
        zeros = f"`fc` is zeros for {_IMAGENET_CLASSES:,} classes: replace it, by a classifier of yours or by nothing."
        return Usage("\n".join(lines), (zeros,))

    def _num_classes(self, part: Part) -> int:
        return len(part.classes) or _IMAGENET_CLASSES

    def _fc(self, part: Part) -> dict[str, Tensor]:
        if part.name == "classifier":
            layer = plain_classifier(part)
            assert layer is not None, "`check` has seen to it"
            return {f"fc.{name}": value for name, value in layer.state_dict().items()}
        rows = _IMAGENET_CLASSES
        return {"fc.weight": torch.zeros(rows, part.width["features"]), "fc.bias": torch.zeros(rows)}


def require_no_blocks(part: Part, name: str) -> None:
    """Raises `UserError` for the hierarchy."""
    if part.name == "hierarchy":
        raise UserError(
            f"--format {name}: its networks have no blocks on inner maps; take --part backbone, or --format onnx,"
            " torch.export or safetensors"
        )


def require_published_resnet(part: Part, name: str, *, in_channels: int = 3) -> None:
    """Raises `UserError` unless the backbone is a ResNet of the published widths and stem, for so many channels."""
    model = part.config.model
    if not isinstance(part.network.backbone, ResNetBackbone):
        raise UserError(
            f"--format {name}: model.backbone = {model.backbone} is none of its networks; take --format timm"
        )
    for key, published in (("width", 1.0), ("stem", "imagenet"), ("in_channels", in_channels)):
        value = getattr(model, key)
        if value != published:
            others = "timm, safetensors" if key == "in_channels" else "safetensors"
            raise UserError(
                f"--format {name}: has no {model.backbone} with model.{key} = {value}, only {published}; take --format"
                f" {others}, onnx or torch.export"
            )


def require_plain_classifier(part: Part, name: str) -> None:
    """Raises `UserError` unless the classifier is one linear layer on the average of the backbone's last map."""
    if plain_classifier(part) is None:
        raise UserError(
            f"--format {name}: its networks have one classifier on the last map, and this one has classifiers on heads;"
            " take --format onnx, torch.export or safetensors, or --part backbone"
        )


def plain_classifier(part: Part) -> nn.Linear | None:
    """The one linear layer of a plain classifier; None of others."""
    found = getattr(part.network, "classifier", None)
    return found if isinstance(found, nn.Linear) else None
