"""What is taken home of a network, and what a format does with it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastfgssl.config.schema import Config
from fastfgssl.models import Network
from fastfgssl.models.classifier import ClassifyingNetwork
from fastfgssl.runtime.errors import UserError

PartName = Literal["backbone", "hierarchy", "classifier"]

Run = Callable[[Tensor], dict[str, Tensor]]
"""Images float32 [B, C, S, S] to outputs by name, float32 [B, D] each."""


class Part(nn.Module):
    """A part of a network as exporters see it: `part(images)` gives outputs by name, as `Run` says.

    backbone: `features`, the average of the last map. hierarchy: `head_0` to `head_2`, the pooled vectors that are
    scored, `all`, which is those side by side, and `backbone`. classifier: `logits`, of the heads' sum.
    """

    name: PartName
    width: dict[str, int]
    """D of each output."""

    def __init__(self, name: PartName, network: Network, config: Config) -> None:
        """network: on the CPU. Raises `UserError` if it has no such part."""
        super().__init__()
        self.name, self.config = name, config
        self._whole = (network.eval().requires_grad_(False),)
        # what exporters find, so that no more is written than it takes
        self.run: Any = network.backbone if name == "backbone" else network
        self.image_size = config.data.image_size
        self.classes: tuple[str, ...] = ()
        if name == "classifier":
            if not isinstance(network, ClassifyingNetwork):
                raise UserError(
                    "--part classifier: this network tells no classes apart; fine-tune it, or take --part backbone"
                )
            self.classes = network.classes
        outputs = self(torch.zeros(1, *self.image_shape))
        if name == "hierarchy" and "all" not in outputs:
            raise UserError(
                f"--part hierarchy: the network of objective={config.objective} has no heads; take --part backbone"
            )
        self.width = {output: values.shape[1] for output, values in outputs.items()}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, S and S of an image."""
        return self.config.model.in_channels, self.image_size, self.image_size

    @property
    def network(self) -> Any:
        """The `Network` that it is a part of."""
        return self._whole[0]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.name == "classifier":
            return {"logits": self.run.predict(images)}
        if self.name == "backbone":
            return {"features": self.run(images)[-1].mean(dim=(2, 3))}
        features = self.run.features(images)
        heads = {name.replace(" ", "_"): values for name, values in features.items() if name.startswith("head")}
        joined = {"all": torch.cat(list(heads.values()), dim=1)} if heads else {}
        return heads | joined | {"backbone": features["backbone"]}


class Usage(NamedTuple):
    """How a written file is used."""

    code: str
    """Python that loads the file and makes its outputs of `images`."""
    remarks: tuple[str, ...] = ()
    """What in the file does not come from training, a sentence each."""


class Format:
    """One way to write a part: a file in this folder each."""

    name: str
    suffixes: tuple[str, ...]
    """Of its files, the usual one first."""

    @property
    def library(self) -> str:
        """Whose loader reads it, with its version."""
        raise NotImplementedError

    def check(self, part: Part) -> None:
        """Raises `UserError` if the format cannot hold `part`, or a package for it is missing."""

    def write(self, part: Part, file: Path) -> None:
        """Writes `part`. Raises `UserError` if the exporter cannot, OSError if the disk cannot."""
        raise NotImplementedError

    def read(self, part: Part, file: Path) -> Run:
        """The file as the target library runs it; with a state dict, in that library's own network."""
        raise NotImplementedError

    def usage(self, part: Part, file: Path) -> Usage:
        """For the model card."""
        raise NotImplementedError


def saved(save: Callable[[BinaryIO], object]) -> bytes:
    """What `save` writes. Straight to a file, torch's writers hide why a disk refused it."""
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def quoted(value: str | list[str]) -> str:
    """A text or a list of them as Python and a model card have it: in double quotes, on one line."""
    return json.dumps(value, ensure_ascii=False)


def in_a_line(error: Exception) -> str:
    """The first line of what an exporter or a runtime says."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
