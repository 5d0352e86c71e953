"""Mixup and CutMix: the papers' formulas, pairs that no number of ranks changes, targets, puzzles, bad arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, chisquare, kstest

from fastfgssl.kernels import jigsaw
from fastfgssl.objectives.mixing import cutmix, cutmix_boxes, mixup, random_permutations

K = 3
LABELS = torch.tensor([0, 1, 2, -1, 1, 1, 0])
WAYS = {"mixup": mixup, "cutmix": cutmix}
FORMATS = [torch.contiguous_format, torch.channels_last]


def images(B: int = 7, height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.randn(B, 3, height, width, generator=torch.Generator().manual_seed(0))


def draws(B: int = 7, n: int = 3) -> np.ndarray:
    return np.random.default_rng(5).random((B, n), dtype=np.float32)


def share_of(row: int, alpha: float) -> float:
    """Lambda of a row's pair, by the distribution of scipy.stats."""
    return beta(alpha, alpha).ppf(float(draws()[row // 2 * 2, 0]))


def shares_of(row: int, share: float) -> list[float]:
    own, of_partner = LABELS[row].item(), LABELS[row ^ 1].item()
    return [share * (own == k) + (1 - share) * (of_partner == k) for k in range(K)]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_that_of_the_paper(alpha):
    mixed = mixup(images(), LABELS, draws(), alpha=alpha, num_classes=K)
    for row in range(6):
        share, partner = share_of(row, alpha), row ^ 1
        expected = share * images()[row].double() + (1 - share) * images()[partner].double()
        torch.testing.assert_close(mixed.images[row].double(), expected, rtol=1e-5, atol=1e-6)
        assert mixed.targets[row].tolist() == pytest.approx(shares_of(row, share), abs=1e-6)
    assert torch.equal(mixed.images[6], images()[6]), "the last of an odd batch has no partner"
    assert mixed.targets[6].tolist() == [1, 0, 0]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_cutmix_is_that_of_the_paper(alpha):
    mixed, (height, width) = cutmix(images(), LABELS, draws(), alpha=alpha, num_classes=K), (8, 12)
    for row in range(6):
        _, across, down = draws()[row // 2 * 2].tolist()
        side = math.sqrt(1 - share_of(row, alpha))
        w, h = int(side * width), int(side * height)
        x, y = int(across * width) - w // 2, int(down * height) - h // 2
        expected, kept = images()[row].clone(), 0
        for i in range(height):
            for j in range(width):
                if y <= i < y + h and x <= j < x + w:
                    expected[:, i, j] = images()[row ^ 1][:, i, j]
                else:
                    kept += 1
        assert torch.equal(mixed.images[row], expected)
        share = kept / (height * width)
        assert mixed.targets[row].tolist() == pytest.approx(shares_of(row, share), abs=1e-6)
    assert torch.equal(mixed.images[6], images()[6])
    assert mixed.targets[6].tolist() == [1, 0, 0]


def test_lambda_is_distributed_as_it_should_be():
    """Seen from outside: the share of white that a white image keeps of itself beside a black one."""
    white = torch.tensor([1.0, 0.0]).repeat(2000)[:, None, None, None].expand(-1, 3, 1, 1)
    shares = mixup(white, torch.zeros(4000, dtype=torch.int64), draws(4000), alpha=0.4, num_classes=1).images[::2, 0]
    assert kstest(shares.flatten().numpy(), beta(0.4, 0.4).cdf).pvalue > 0.01


def test_boxes_are_within_the_image_and_centred_anywhere():
    boxes = cutmix_boxes(draws(2000), 1.0, height=30, width=20)
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 20).all()
    assert (bottom <= 30).all()
    # a pixel at the edge is in fewer boxes than one in the middle, but in some
    inside = [((left <= x) & (x < right)).mean() for x in range(20)]
    assert 0.05 < inside[0] < inside[10]
    assert inside[0] == pytest.approx(inside[19], abs=0.05)


@pytest.mark.parametrize("way", WAYS)
def test_ranks_mix_as_one_process(way):
    arguments = {"alpha": 0.4, "num_classes": K}
    whole = WAYS[way](images(), LABELS, draws(), **arguments)
    parts = [
        WAYS[way](images()[rows], LABELS[rows], draws()[rows], **arguments) for rows in (slice(0, 4), slice(4, None))
    ]
    for index in range(2):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_batch_stays_what_it_was_and_layout_and_dtype_are_kept(way, memory_format, dtype):
    batch = images().to(dtype).contiguous(memory_format=memory_format)
    before = batch.clone()
    mixed = WAYS[way](batch, LABELS, np.pad(draws(), ((0, 0), (0, 4))), alpha=0.4, num_classes=K)
    assert torch.equal(batch, before)
    assert mixed.images.stride() == batch.stride()
    assert mixed.images.dtype == dtype
    assert mixed.targets.dtype == torch.float32
    exact = WAYS[way](images(), LABELS, draws(), alpha=0.4, num_classes=K).images
    torch.testing.assert_close(mixed.images.float(), exact, rtol=2e-3, atol=2e-3)
    assert torch.equal(WAYS[way](batch[:1], LABELS[:1], draws(1), alpha=0.4, num_classes=K).images, batch[:1])


def test_permutations_are_uniform_and_cut_puzzles():
    numbers = draws(4800, 4)
    permutations = random_permutations(numbers, 2)
    _, counts = permutations.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert chisquare(counts.numpy()).pvalue > 0.01
    assert torch.equal(random_permutations(torch.from_numpy(numbers), 2), permutations)
    batch = images().contiguous(memory_format=torch.channels_last)
    puzzles = jigsaw(batch, random_permutations(draws(7, 16), 4), 4)
    assert torch.equal(puzzles.sum(dim=(2, 3)).sort().indices, batch.sum(dim=(2, 3)).sort().indices)


BAD = {
    r"images: must be \[B, C, H, W\] of a float dtype": {"images": images().byte()},
    r"labels: must be \[7\]": {"labels": LABELS[:3]},
    r"draws: must be \[7, 3\] or wider, got \[7, 2\]": {"draws": draws(n=2)},
    r"alpha = 0.0: must be greater than 0": {"alpha": 0.0},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(way, message):
    arguments = {"images": images(), "labels": LABELS, "draws": draws(), "alpha": 1.0, "num_classes": K}
    with pytest.raises(ValueError, match=message):
        WAYS[way](**arguments | BAD[message])


def test_a_number_for_each_tile():
    with pytest.raises(ValueError, match=r"draws: must be \[B, 16\]"):
        random_permutations(draws(2, 3), 4)
