"""torch.export: the graph and its weights in one file (.pt2), which torch runs without this package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from fastfgssl.export.base import Format, Part, Run, Usage, in_a_line, quoted, saved
from fastfgssl.runtime.errors import UserError


class TorchExport(Format):
    name = "torch.export"
    suffixes = (".pt2",)

    @property
    def library(self) -> str:
        return f"torch {torch.__version__}"

    def write(self, part: Part, file: Path) -> None:
        program = trace(part, self.name)
        file.write_bytes(saved(lambda stream: torch.export.save(program, stream)))

    def read(self, part: Part, file: Path) -> Run:
        return torch.export.load(file).module()

    def usage(self, part: Part, file: Path) -> Usage:
        lines = [
            "import torch",
            "",
            f"program = torch.export.load({quoted(file.name)}).module()",
            "outputs = program(images)",
        ]
        return Usage("\n".join([*lines, *(f'{name} = outputs["{name}"]' for name in part.width)]))


def trace(part: Part, name: str) -> ExportedProgram:
    """The graph of `part` for batches of any size. Raises `UserError` if torch cannot make it."""
    # of two images: a batch of one would be taken for a constant
    example = torch.zeros(2, *part.image_shape)
    try:
        return torch.export.export(part, (example,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # of tracer, guards and symbolic shapes, each its own
        raise UserError(
            f"--format {name}: torch {torch.__version__} cannot export {part.config.model.backbone}"
            f" ({in_a_line(error)}); take --format safetensors"
        ) from None
