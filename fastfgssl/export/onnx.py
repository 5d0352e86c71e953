"""ONNX: a graph for any runtime, with a dynamic batch; run and compared by onnxruntime."""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastfgssl.export.base import Format, Part, Run, Usage, in_a_line, quoted
from fastfgssl.export.parity import largest_difference
from fastfgssl.export.preprocessing import preprocessing_values
from fastfgssl.export.torch_export import trace
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.versions import version_of

log = logging.getLogger(__name__)

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Onnx(Format):
    """By torch's exporter, rewritten by its optimiser, unless that goes wrong.

    It has given convolutions the biases of others as it folded batch norms (pytorch#166797). The graph is then written
    as it was traced, which is longer, and right.
    """

    name = "onnx"
    suffixes = (".onnx",)

    @property
    def library(self) -> str:
        return f"onnxruntime {version_of('onnxruntime')}"

    def check(self, part: Part) -> None:
        for package in _PACKAGES:
            try:
                importlib.import_module(package)
            except ImportError:
                raise UserError(f"--format onnx: needs the package {package}: pip install 'fastfgssl[onnx]'") from None

    def write(self, part: Part, file: Path) -> None:
        traced = trace(part, self.name)
        _write(traced, part, file, optimize=True)
        try:
            largest_difference(part, self.read(part, file), self)
        except UserError:
            log.warning("torch %s: its ONNX optimiser made another network; written without it", torch.__version__)
            _write(traced, part, file, optimize=False)

    def read(self, part: Part, file: Path) -> Run:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(images: Tensor) -> dict[str, Tensor]:
            outputs = session.run(names, {"images": images.numpy()})
            return {name: torch.from_numpy(values) for name, values in zip(names, outputs, strict=True)}

        return run

    def usage(self, part: Part, file: Path) -> Usage:
        lines = [
            "import onnxruntime",
            "",
            f"session = onnxruntime.InferenceSession({quoted(file.name)})",
            f"{', '.join(part.width)}{',' * (len(part.width) == 1)} = session.run({quoted(list(part.width))},"
            ' {"images": images.numpy()})',
        ]
        return Usage("\n".join(lines))


def _write(traced: ExportedProgram, part: Part, file: Path, *, optimize: bool) -> None:
    try:
        program: Any = torch.onnx.export(
            traced,
            dynamo=True,
            optimize=optimize,
            verbose=False,
            input_names=["images"],
            output_names=list(part.width),
            dynamic_shapes=({0: "batch"},),
        )
    except Exception as error:  # of translation and of its checks, each its own
        raise UserError(
            f"--format onnx: torch {torch.__version__} cannot export {part.config.model.backbone}"
            f" ({in_a_line(error)}); take --format torch.export or safetensors"
        ) from None
    # what a runtime has to know and might find beside no file
    facts = {"preprocessing": preprocessing_values(part.config)} | ({"classes": part.classes} if part.classes else {})
    program.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    program.save(file)
