"""Mixup and CutMix of a batch on its device, and permutations to cut puzzles of what they make.

An image's partner is its neighbour: of images 2j and 2j + 1 each is mixed with the other, by one share and one box. So
what is made of an image does not depend on how many ranks have the batch, as long as each has an even number of rows
of it. The last image of an odd batch stays as it is. Random numbers come in as draws, those of image 2j for the pair.

B images, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from fastfgssl.data.batch import on_device
from fastfgssl.loss.classification import soft_targets

DRAWS = 3
"""Uniform numbers of each image: of lambda, and of the box's centre, across and down."""


class Mixed(NamedTuple):
    images: Tensor
    """Like the images that went in, in their dtype and memory format; no part of their memory."""
    targets: Tensor
    """float32 [B, K]: shares of classes; those of an image without a class are missing, so that they count less."""


def mixup(images: Tensor, labels: Tensor, draws: np.ndarray, *, alpha: float, num_classes: int) -> Mixed:
    """lambda x_a + (1 - lambda) x_b, lambda ~ Beta(alpha, alpha), and the same of the targets (arXiv 1710.09412).

    images: float [B, C, H, W]; labels: int64 [B], -1 for none, on the images' device; draws: float32 [B, 3 or more] in
    [0, 1), on the host. Raises ValueError naming the argument that does not fit.
    """
    _require(images, labels, draws, alpha)
    pairs = len(images) // 2
    shares = on_device(_beta(draws[: 2 * pairs : 2, 0], alpha).astype(np.float32), images.device)
    mixed, (first, second) = images.clone(), _pairs(images)
    weight = shares.to(images.dtype)[:, None, None, None]
    mixed[: 2 * pairs : 2] = torch.lerp(second, first, weight)
    mixed[1 : 2 * pairs : 2] = torch.lerp(first, second, weight)
    return Mixed(mixed, _mixed_targets(labels, shares, num_classes))


def cutmix(images: Tensor, labels: Tensor, draws: np.ndarray, *, alpha: float, num_classes: int) -> Mixed:
    """Each image with a box of its partner's pixels, the same place of both (arXiv 1905.04899).

    The box has 1 - lambda of the area, lambda ~ Beta(alpha, alpha), the image's proportions and a uniform centre; what
    hangs over the edge is cut off, and an image's share in its targets is the share of pixels that it keeps. Arguments
    and errors as of `mixup`.
    """
    _require(images, labels, draws, alpha)
    height, width = images.shape[2:]
    pairs = len(images) // 2
    boxes = cutmix_boxes(draws[: 2 * pairs : 2], alpha, height=height, width=width)
    kept = 1 - (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (width * height)
    left, top, right, bottom = on_device(boxes, images.device)[:, :, None, None, None].unbind(dim=1)
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    is_inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)  # [pairs, 1, H, W]
    mixed, (first, second) = images.clone(), _pairs(images)
    mixed[: 2 * pairs : 2] = torch.where(is_inside, second, first)
    mixed[1 : 2 * pairs : 2] = torch.where(is_inside, first, second)
    shares = on_device(kept.astype(np.float32), images.device)
    return Mixed(mixed, _mixed_targets(labels, shares, num_classes))


def cutmix_boxes(draws: np.ndarray, alpha: float, *, height: int, width: int) -> np.ndarray:
    """A box for each row of draws [N, 3]: int64 [N, 4], left, top, right, bottom in pixels, the last two exclusive."""
    side = np.sqrt(1 - _beta(draws[:, 0], alpha))[:, None]
    size = np.array([width, height])
    centre = np.floor(draws[:, 1:3] * size)
    first = centre - np.floor(side * size) // 2
    return np.concatenate((first, first + np.floor(side * size)), axis=1).clip(0, np.tile(size, 2)).astype(np.int64)


def random_permutations(draws: Tensor | np.ndarray, grid: int) -> Tensor:
    """A uniform permutation of a grid's tiles for each row, as `fastfgssl.kernels.jigsaw` takes it.

    draws: float [B, grid * grid]: their order is the permutation. Returns int64 [B, grid * grid] on the device of
    `draws`; rows the same on every device.
    """
    draws = torch.as_tensor(draws)
    if draws.ndim != 2 or draws.shape[1] != grid * grid:
        raise ValueError(f"draws: must be [B, {grid * grid}], a number for each tile, got {list(draws.shape)}")
    return draws.argsort(dim=1, stable=True)


def _beta(uniform: np.ndarray, alpha: float) -> np.ndarray:
    """Numbers of the distribution Beta(alpha, alpha): float64, by the inverse of its cumulative distribution."""
    return betaincinv(alpha, alpha, uniform.astype(np.float64))


def _pairs(images: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second images of pairs, as views."""
    end = len(images) // 2 * 2
    return images[0:end:2], images[1:end:2]


def _mixed_targets(labels: Tensor, shares: Tensor, num_classes: int) -> Tensor:
    """shares: float32 [B // 2], what each image of a pair keeps of its own."""
    own = soft_targets(labels, num_classes)
    mixed, (first, second) = own.clone(), _pairs(own)
    mixed[0 : 2 * len(shares) : 2] = torch.lerp(second, first, shares[:, None])
    mixed[1 : 2 * len(shares) : 2] = torch.lerp(first, second, shares[:, None])
    return mixed


def _require(images: Tensor, labels: Tensor, draws: np.ndarray, alpha: float) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images: must be [B, C, H, W] of a float dtype, got {list(images.shape)} of {images.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels: must be [{len(images)}], one for each image, got {list(labels.shape)}")
    if draws.ndim != 2 or len(draws) != len(images) or draws.shape[1] < DRAWS:
        raise ValueError(f"draws: must be [{len(images)}, {DRAWS}] or wider, got {list(draws.shape)}")
    if not alpha > 0:
        raise ValueError(f"alpha = {alpha!r}: must be greater than 0")
