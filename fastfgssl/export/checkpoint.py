"""A checkpoint written for another library: what `fastfgssl export` and `fastfgssl.export_checkpoint` do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from fastfgssl.evaluation.pretrained import load_pretrained
from fastfgssl.export.base import Format, Part, PartName
from fastfgssl.export.card import Card, write_card
from fastfgssl.export.onnx import Onnx
from fastfgssl.export.parity import largest_difference
from fastfgssl.export.preprocessing import preprocessing_values
from fastfgssl.export.safetensors import Safetensors
from fastfgssl.export.score_tables import read_scores
from fastfgssl.export.timm import Timm
from fastfgssl.export.torch_export import TorchExport
from fastfgssl.export.torchvision import Torchvision
from fastfgssl.models.classifier import ClassifyingNetwork
from fastfgssl.runtime.environment import require_alone
from fastfgssl.runtime.errors import UserError, file_errors, require_one_of
from fastfgssl.runtime.files import check_writable, staged, user_path

FORMATS: dict[str, Format] = {
    format.name: format for format in (Torchvision(), Timm(), Safetensors(), Onnx(), TorchExport())
}


class Exported(NamedTuple):
    """What was written."""

    file: Path
    card: Path
    """The model card, Markdown."""
    preprocessing: Path
    """What images go through, JSON."""
    part: PartName
    difference: float
    """The largest between the file as its library runs it and the network, as a share of an output's largest value."""
    remarks: tuple[str, ...]
    """What in the file does not come from training."""


def export_checkpoint(
    checkpoint: str | Path,
    format: str,
    out: str | Path,
    *,
    part: PartName | None = None,
    scores: Sequence[str | Path] = (),
) -> Exported:
    """Writes a part of a checkpoint's network, with OUT.md and OUT.preprocessing.json beside it.

    checkpoint: as for `fastfgssl.load`. format: a name in `FORMATS`. part: see `Part`; None takes the classifier where
    there is one, else the backbone. scores: JSON files of `fastfgssl evaluate`, for the model card. The file is read by
    the library that it is for and compared with the network on batches of 1, 2 and 7; one that differs by more than
    rounding is not left there. Raises `UserError` for that, and for whatever the format cannot hold.
    """
    require_one_of("--format", format, FORMATS)
    if part is not None:
        require_one_of("--part", part, get_args(PartName))
    require_alone("an export")
    target, out = FORMATS[format], user_path(out)
    if out.suffix not in target.suffixes:
        raise UserError(f"--out {out}: a file of --format {format} ends with {' or '.join(target.suffixes)}")
    if out.exists() and not out.is_file():
        raise UserError(f"--out {out}: is no file; name one")
    tables = [read_scores(user_path(file)) for file in scores]
    check_writable(out)
    pretrained = load_pretrained(checkpoint)
    name: PartName = part or ("classifier" if isinstance(pretrained.model, ClassifyingNetwork) else "backbone")
    taken = Part(name, pretrained.model, pretrained.config)
    target.check(taken)
    with file_errors("write", out), staged(out.parent) as folder:
        file = folder / out.name
        target.write(taken, file)
        difference = largest_difference(taken, target.read(taken, file), target)
        usage = target.usage(taken, file)
        card, preprocessing = out.with_name(f"{out.name}.md"), out.with_name(f"{out.name}.preprocessing.json")
        write_card(folder / card.name, Card(pretrained, taken, target, file, usage, difference, tables))
        (folder / preprocessing.name).write_text(json.dumps(preprocessing_values(pretrained.config), indent=2) + "\n")
    return Exported(out, card, preprocessing, name, difference, usage.remarks)
