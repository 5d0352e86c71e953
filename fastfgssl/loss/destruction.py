"""Destruction and construction as a second task: DCL (Chen et al., CVPR 2019; with 2K classes arXiv 2105.08788).

Each image is shown whole and with its tiles moved a little; a classifier of 2K classes tells both the class and whether
tiles moved, and a map of features says where each tile came from. The three losses are added with equal weights:

    L = CE(whole and moved, y) + CE over 2K classes (moved: y + K) + MSE(tanh(AvgPool(Conv1x1(f))), places)

B images, K classes; a batch of 2B rows has the B whole images first, then the same with their tiles moved.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from fastfgssl.loss.batch_mean import batch_mean
from fastfgssl.loss.classification import cross_entropy, soft_targets


class Destroyed(NamedTuple):
    """What `DestructionHeads` make of feature maps of 2B rows."""

    logits: Tensor
    """[2B, 2K]: class y whole is y, with its tiles moved it is y + K."""
    places: Tensor
    """float [2B, grid * grid] in (-1, 1): where each tile is thought to have come from."""


class DestructionHeads(nn.Module):
    """The two heads on a map of features of `channels` channels, for images that are cut into grid x grid tiles."""

    def __init__(self, channels: int, num_classes: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.classifier = nn.Linear(channels, 2 * num_classes)
        self.places = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, maps: Tensor) -> Destroyed:
        """maps: float [2B, channels, H, W]. Raises ValueError unless H and W are multiples of the grid."""
        height, width = maps.shape[2:]
        if height % self.grid or width % self.grid:
            raise ValueError(
                f"grid = {self.grid}: must divide the height and width of the feature map, {height} and {width}"
            )
        marks = self.places(maps)
        marks = marks.to(torch.promote_types(marks.dtype, torch.float32))
        marks = F.avg_pool2d(marks, (height // self.grid, width // self.grid))
        return Destroyed(self.classifier(maps.mean(dim=(2, 3))), marks.tanh().flatten(1))


def confusion_permutations(draws: Tensor | np.ndarray, grid: int, *, window: int = 2) -> Tensor:
    """Permutations that move tiles a little, each by less than 2 `window` across and down (region confusion mechanism).

    In each row of tiles, tile i gets the key i + r, r uniform in [-window, window), and the row is sorted by keys; then
    the same in each column of what came out. (The published code does something else: it swaps neighbours one after
    the other, and whole rows of tiles, and so may carry a tile from end to end.)

    draws: float [B, 2 grid^2], uniform in [0, 1), of the rows and then of the columns. Returns int64 [B, grid^2] on the
    device of `draws`, as `fastfgssl.kernels.jigsaw` takes it; rows the same on every device.
    """
    draws = torch.as_tensor(draws)
    if draws.ndim != 2 or draws.shape[1] != 2 * grid * grid:
        raise ValueError(f"draws: must be [B, {2 * grid * grid}], two for each tile, got {list(draws.shape)}")
    across, down = (window * (2 * draws - 1)).unflatten(1, (2, grid, grid)).unbind(dim=1)
    numbers = torch.arange(grid, device=draws.device)
    columns = (numbers + across).argsort(dim=2, stable=True)  # [B, row, column]: the column whose tile comes here
    rows = (numbers[:, None] + down).argsort(dim=1, stable=True)
    return (numbers[:, None] * grid + columns).gather(1, rows).flatten(1)


def tile_places(permutations: Tensor) -> Tensor:
    """Where the tile came from that stands at each place, as a number: (t - (T - 1) / 2) / T of T tiles, row-major.

    permutations: int64 [B, T]. Returns float32 [B, T], in (-1/2, 1/2).
    """
    num_tiles = permutations.shape[1]
    return (permutations - (num_tiles - 1) / 2).float() / num_tiles


def adversarial_loss(logits: Tensor, targets: Tensor, *, group: ProcessGroup | None = None) -> Tensor:
    """The cross-entropy over 2K classes.

    logits: [2B, 2K]; targets: of the B images, as of `cross_entropy`; group: as there. Returns [].
    """
    shares = soft_targets(targets, logits.shape[1] // 2)
    # whole: K shares and K zeros; with tiles moved: the other way round
    return cross_entropy(logits, torch.block_diag(shares, shares), group=group)


def alignment_loss(places: Tensor, permutations: Tensor, *, group: ProcessGroup | None = None) -> Tensor:
    """The mean squared error of the places of tiles, of images with a class or without.

    places: float [2B, T]; permutations: int64 [B, T], by which the second half was cut; group: as of `batch_mean`.
    Returns [].
    """
    num_rows, num_tiles = permutations.shape
    if places.shape != (2 * num_rows, num_tiles):
        raise ValueError(f"places: must be [{2 * num_rows}, {num_tiles}], got {list(places.shape)}")
    whole = torch.arange(num_tiles, device=permutations.device).expand_as(permutations)
    truth = tile_places(torch.cat((whole, permutations))).to(places.dtype)
    errors = (places - truth).square().mean(dim=1)
    return batch_mean(errors, torch.ones_like(errors), group=group)
