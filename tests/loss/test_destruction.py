"""Destruction and construction, and rotation: which tile goes where, and the formulas of the losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastfgssl.kernels import jigsaw
from fastfgssl.loss.destruction import (
    DestructionHeads,
    adversarial_loss,
    alignment_loss,
    confusion_permutations,
    tile_places,
)
from fastfgssl.loss.rotation import four_rotations, rotation_loss

K = 3


def draws(B: int, grid: int) -> np.ndarray:
    return np.random.default_rng(grid).random((B, 2 * grid * grid), dtype=np.float32)


def by_definition(row: np.ndarray, grid: int, window: int) -> list[int]:
    """Rows of tiles sorted by i + r, r in [-window, window), then columns."""
    r = (window * (2 * row - 1)).reshape(2, grid, grid)
    tiles = [[i * grid + j for j in range(grid)] for i in range(grid)]
    for i in range(grid):
        order = sorted(range(grid), key=lambda j: np.float32(j + r[0, i, j]))
        tiles[i] = [tiles[i][j] for j in order]
    for j in range(grid):
        order = sorted(range(grid), key=lambda i: np.float32(i + r[1, i, j]))
        column = [tiles[i][j] for i in order]
        for i in range(grid):
            tiles[i][j] = column[i]
    return [tile for line in tiles for tile in line]


@pytest.mark.parametrize(("grid", "window"), [(7, 2), (4, 1), (8, 3), (1, 2), (2, 2)])
def test_tiles_are_moved_a_little_across_and_then_down(grid, window):
    numbers = draws(30, grid)
    permutations = confusion_permutations(numbers, grid, window=window)
    assert permutations.tolist() == [by_definition(row, grid, window) for row in numbers]
    assert (permutations.sort(dim=1).values == torch.arange(grid * grid)).all()
    here = torch.arange(grid * grid)
    for moved in (permutations // grid - here // grid, permutations % grid - here % grid):
        assert moved.abs().max() < 2 * window
        assert grid == 1 or moved.any(), "nothing is destroyed"


def test_undisturbed_tiles_stay_and_the_jigsaw_cuts_what_is_said():
    assert confusion_permutations(np.full((1, 98), 0.5, dtype=np.float32), 7).tolist() == [list(range(49))]
    permutations = confusion_permutations(torch.from_numpy(draws(5, 7)), 7)
    tiles = torch.arange(49.0).reshape(1, 1, 7, 7).expand(5, -1, -1, -1)
    destroyed = jigsaw(F.interpolate(tiles, size=14), permutations, 7)
    assert torch.equal(destroyed[:, 0, ::2, ::2].flatten(1), permutations.float())


def test_places_are_those_of_the_paper():
    permutations = torch.randperm(49)[None]
    expected = [(tile - 24) / 49 for tile in permutations[0].tolist()]
    assert tile_places(permutations)[0].tolist() == pytest.approx(expected)


def test_the_heads_and_the_losses_are_those_of_the_formulas():
    torch.manual_seed(0)
    heads, maps = DestructionHeads(2, K, grid=3).double(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    targets, permutations = torch.tensor([2, 0]), confusion_permutations(draws(2, 3), 3)
    destroyed = heads(maps)
    weight, bias = heads.places.weight.flatten().tolist(), heads.places.bias.item()
    errors, adversarial = [], []
    for row in range(4):
        for tile in range(9):
            y, x = 2 * (tile // 3), 2 * (tile % 3)
            marks = [
                bias + sum(weight[c] * maps[row, c, y + dy, x + dx].item() for c in range(2))
                for dy in (0, 1)
                for dx in (0, 1)
            ]
            came_from = tile if row < 2 else permutations[row - 2, tile].item()
            errors.append((math.tanh(sum(marks) / 4) - (came_from - 4) / 9) ** 2)
        logits = heads.classifier(maps[row].mean(dim=(1, 2))).tolist()
        y = targets[row % 2].item() + (K if row >= 2 else 0)
        adversarial.append(math.log(sum(math.exp(value) for value in logits)) - logits[y])
    aligned = alignment_loss(destroyed.places, permutations)
    assert aligned.item() == pytest.approx(sum(errors) / len(errors), rel=1e-6)  # labels are float32
    told = adversarial_loss(destroyed.logits, targets)
    assert told.item() == pytest.approx(sum(adversarial) / 4, rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda z: adversarial_loss(heads(z).logits, targets) + alignment_loss(heads(z).places, permutations),
        maps.requires_grad_(),
        fast_mode=True,
    )


def test_an_image_without_a_class_is_aligned_only():
    logits = torch.randn(4, 2 * K, generator=torch.Generator().manual_seed(0))
    of_first = F.cross_entropy(logits[[0, 2]], torch.tensor([1, 1 + K]))
    torch.testing.assert_close(adversarial_loss(logits, torch.tensor([1, -1])), of_first)


def test_half_precision_is_aligned_in_float32():
    heads = DestructionHeads(5, K, grid=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert heads(torch.randn(2, 5, 4, 4)).places.dtype == torch.float32


def test_images_are_turned_counter_clockwise_whole_batches_at_a_time():
    images = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    turned = four_rotations(images)
    assert turned.is_contiguous(memory_format=torch.channels_last)
    assert four_rotations(images.contiguous()).is_contiguous()
    for turns in range(4):
        for row in range(2):
            # rows of pixels run down: from above, that is counter-clockwise
            expected = np.rot90(images[row].numpy(), turns, axes=(1, 2))
            assert np.array_equal(turned[2 * turns + row].numpy(), expected)


def test_rotation_has_a_tenth_of_the_loss():
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = sum(
        math.log(sum(math.exp(value) for value in row)) - row[index // 2] for index, row in enumerate(logits.tolist())
    )
    loss = rotation_loss(torch.tensor(2.0, dtype=torch.float64), logits)
    assert loss.item() == pytest.approx(0.9 * 2 + 0.1 * expected / 8, rel=1e-12)


BAD = {
    r"draws: must be \[B, 98\]": lambda: confusion_permutations(draws(2, 6), 7),
    r"grid = 4: must divide the height and width of the feature map, 7 and 7": lambda: DestructionHeads(2, K, 4)(
        torch.zeros(2, 2, 7, 7)
    ),
    r"places: must be \[4, 9\], got \[2, 9\]": lambda: alignment_loss(torch.zeros(2, 9), torch.arange(9).expand(2, -1)),
    r"images: must be \[B, C, S, S\], square": lambda: four_rotations(torch.zeros(1, 3, 4, 6)),
    r"rotation_logits: must be \[4B, 4\]": lambda: rotation_loss(torch.zeros(()), torch.zeros(6, 4)),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
