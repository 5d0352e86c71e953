"""A picture of what the network is shown: the first images of a batch, a row each, a view a column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from fastfgssl.data.batch import Batch
from fastfgssl.runtime.files import write_whole

_ROWS = 6
_GAP = 4
_HEADER = 16
_SMALLEST = 96  # pixels a view is at least shown at


def save_views_picture(
    batch: Batch, file: Path, *, grids: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Writes a PNG of the views that a batch has, with the normalisation undone; grids: one for each of its puzzles."""
    views: list[tuple[str, torch.Tensor | None]] = [("anchor", batch.anchor), ("puzzle view", batch.puzzle_view)]
    views += [(f"puzzle {grid} x {grid}", puzzle) for grid, puzzle in zip(grids, batch.puzzles, strict=True)]
    columns = [(title, view) for title, view in views if view is not None]
    rows = min(_ROWS, len(batch.ids))
    side = columns[0][1].shape[-1]
    shown = side * -(-_SMALLEST // side)
    sheet = Image.new("RGB", (len(columns) * (shown + _GAP) + _GAP, _HEADER + rows * (shown + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, pictures) in enumerate(columns):
        left = _GAP + column * (shown + _GAP)
        draw.text((left, 2), title, fill="black", font=ImageFont.load_default(size=11))
        for row, pixels in enumerate(_to_uint8(pictures[:rows], mean, std)):
            view = Image.fromarray(pixels.numpy()).resize((shown, shown), Image.Resampling.NEAREST)
            sheet.paste(view, (left, _HEADER + row * (shown + _GAP)))
    write_whole(file, lambda opened: sheet.save(opened, format="PNG"))


def _to_uint8(views: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """[B, C, S, S] normalised to [B, S, S, 3] uint8 on the CPU; C is 3, or 1 of gray."""
    pixels = views.permute(0, 2, 3, 1).float().cpu() * torch.tensor(std) + torch.tensor(mean)
    return (255 * pixels).round().clamp(0, 255).to(torch.uint8).expand(-1, -1, -1, 3)
