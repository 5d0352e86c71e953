"""Telling by how much an image was rotated, as a second task beside its class (arXiv 2105.08788).

L = 0.9 CE(class) + 0.1 CE(rotation), over all four rotations of each image
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastfgssl.loss.classification import cross_entropy

TURNS = 4


def four_rotations(images: Tensor) -> Tensor:
    """Every image in its four rotations: row r B + i is image i, turned by r quarters counter-clockwise.

    images: [B, C, S, S]. Returns [4B, C, S, S] in the memory format of `images`; targets of its rows are
    `torch.cat([targets] * 4)`. Raises ValueError for images that are not square.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images: must be [B, C, S, S], square, got {list(images.shape)}")
    rotated = images.new_empty((TURNS, *images.shape))
    if images.is_contiguous(memory_format=torch.channels_last):
        rotated = images.new_empty((TURNS, *images.permute(0, 2, 3, 1).shape)).permute(0, 1, 4, 2, 3)
    for turns in range(TURNS):
        rotated[turns] = images.rot90(turns, dims=(2, 3))
    return rotated.flatten(0, 1)


def rotation_loss(
    class_loss: Tensor, rotation_logits: Tensor, *, weight: float = 0.1, group: ProcessGroup | None = None
) -> Tensor:
    """(1 - weight) class_loss + weight CE(rotation).

    class_loss: [], of all four rotations of each image; rotation_logits: [4B, 4], in the order of `four_rotations`;
    group: as of `cross_entropy`. Returns [].
    """
    num_rows = len(rotation_logits)
    if rotation_logits.shape != (num_rows, TURNS) or num_rows % TURNS:
        raise ValueError(f"rotation_logits: must be [4B, {TURNS}], got {list(rotation_logits.shape)}")
    turns = torch.arange(TURNS, device=rotation_logits.device).repeat_interleave(num_rows // TURNS)
    return (1 - weight) * class_loss + weight * cross_entropy(rotation_logits, turns, group=group)
