"""safetensors: the weights alone, in a file that holds no code and is read without copying."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from fastfgssl.evaluation.pretrained import build_untrained
from fastfgssl.export.base import Format, Part, Run, Usage, quoted
from fastfgssl.models.timm_backbone import TimmBackbone
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.versions import version_of


class Safetensors(Format):
    """backbone: under the names of its library, without a classifier. Other parts: the whole network, under ours."""

    name = "safetensors"
    suffixes = (".safetensors",)

    @property
    def library(self) -> str:
        return f"safetensors {version_of('safetensors')}"

    def check(self, part: Part) -> None:
        try:
            import safetensors.torch  # noqa: F401 - only whether it can be had
        except ImportError:
            raise UserError("--format safetensors: needs the package safetensors: pip install safetensors") from None

    def write(self, part: Part, file: Path) -> None:
        from safetensors.torch import save

        # what other programs look for, and what tells networks apart; values are text
        facts = {"format": "pt", "part": part.name, "backbone": part.config.model.backbone}
        if part.classes:
            facts["classes"] = json.dumps(part.classes)
        state = {name: value.contiguous() for name, value in _holder(part).state_dict().items()}
        file.write_bytes(save(state, metadata=facts))

    def read(self, part: Part, file: Path) -> Run:
        from safetensors.torch import load_file

        # a network with other weights: what the file lacks would be seen
        again = Part(part.name, build_untrained(part.config, part.config.seed + 1), part.config)
        _holder(again).load_state_dict(load_file(file), strict=True)
        return again

    def usage(self, part: Part, file: Path) -> Usage:
        load = ["from safetensors.torch import load_file", "", f"weights = load_file({quoted(file.name)})"]
        if part.name != "backbone":
            return Usage(
                "\n".join(load), ("The names are those of this package's network; `fastfgssl.load` makes it.",)
            )
        family = "timm" if isinstance(part.network.backbone, TimmBackbone) else "torchvision"
        return Usage("\n".join(load), (f"The names are those of {family}'s {part.config.model.backbone}.",))


def _holder(part: Part) -> nn.Module:
    """The module whose names the file has."""
    if part.name != "backbone":
        return part.network
    backbone = part.network.backbone
    return backbone.network if isinstance(backbone, TimmBackbone) else backbone
