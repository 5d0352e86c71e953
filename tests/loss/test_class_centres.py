"""Class centres and their graph: the formulas, the epoch, mixed targets, resuming in its middle, bad arguments."""

from __future__ import annotations

import math

import pytest
import torch

from fastfgssl.loss.class_centres import ClassCentres
from fastfgssl.loss.classification import soft_targets

K, F = 4, 6
TARGETS = torch.tensor([0, 1, 2, -1, 1, 1, 0])


def features(seed: int, B=7, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(B, F, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def shares_of_pairs() -> torch.Tensor:
    """As mixup makes them; the fourth image has no class, and so half of the third has none."""
    own = soft_targets(TARGETS, K, dtype=torch.float64)
    return 0.3 * own + 0.7 * own[[1, 0, 3, 2, 5, 4, 6]]


def centres_after(*batches: tuple[torch.Tensor, torch.Tensor]) -> ClassCentres:
    centres = ClassCentres(K, F)
    for batch in batches:
        centres.accumulate(*batch)
    centres.finish_epoch()
    return centres


def test_centres_are_the_means_of_the_last_epoch():
    centres = centres_after((features(0), TARGETS), (features(1), TARGETS.flip(0)))
    both, labels = torch.cat((features(0), features(1))), torch.cat((TARGETS, TARGETS.flip(0)))
    for k in range(3):
        torch.testing.assert_close(centres.centres[k], both[labels == k].mean(dim=0))
    assert not centres.centres[3].any()
    # an epoch that shows class 3 alone leaves the others as they are
    before = centres.centres.clone()
    centres.accumulate(features(2, B=2), torch.tensor([3, 3]))
    centres.finish_epoch()
    torch.testing.assert_close(centres.centres, torch.cat((before[:3], features(2, B=2).mean(dim=0)[None])))


def test_mixed_images_count_by_their_shares():
    centres = centres_after((features(0), shares_of_pairs()))
    shares = shares_of_pairs()
    for k in range(3):
        expected = sum(share * row for share, row in zip(shares[:, k], features(0), strict=True)) / shares[:, k].sum()
        torch.testing.assert_close(centres.centres[k], expected)


def cosine(a, b) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def by_definition(rows, shares, centres, tau) -> tuple[float, float]:
    """Both losses written out in Python's floats; a share of an image in a class is that much of an image."""
    rows, shares, centres = (values.tolist() for values in (rows, shares, centres))
    centre = graph = count = 0.0
    for f, of_classes in zip(rows, shares, strict=True):
        for y, share in enumerate(of_classes):
            count += share
            centre += share * sum((a - b) ** 2 for a, b in zip(f, centres[y], strict=True))
            for c in centres:
                graph += share * (math.exp(cosine(centres[y], c) / tau) - math.exp(cosine(f, c) / tau)) ** 2
    return centre / count, graph / count


@pytest.mark.parametrize("targets", [TARGETS, shares_of_pairs()], ids=["hard", "mixed"])
@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_the_losses_are_those_of_the_formulas(targets, tau):
    every_class = torch.tensor([0, 1, 2, 3, 1, 1, 0])
    centres = centres_after((features(0), every_class))
    terms = centres(features(1), targets, temperature=tau)
    expected = by_definition(features(1), soft_targets(targets, K, dtype=torch.float64), centres.centres, tau)
    assert (terms.centre.item(), terms.graph.item()) == pytest.approx(expected, rel=1e-12)
    for term in range(2):
        assert torch.autograd.gradcheck(
            lambda z, term=term: centres(z, targets, temperature=tau)[term], features(1).requires_grad_()
        )


def test_they_draw_features_to_their_centre():
    centres = centres_after((features(0), TARGETS))
    at_centre = centres.centres[:3].clone().requires_grad_()
    for term in centres(at_centre, torch.arange(3)):
        assert term.item() == pytest.approx(0, abs=1e-20)
    away = (centres.centres[:3] + features(3, B=3)).requires_grad_()
    (gradient,) = torch.autograd.grad(centres(away, torch.arange(3)).centre, away)
    torch.testing.assert_close(away - gradient * 3 / 2, centres.centres[:3])


def test_before_the_first_epoch_is_over_there_is_nothing_to_be_drawn_to():
    centres, rows = ClassCentres(K, F), features(0).requires_grad_()
    terms = centres(rows, TARGETS)
    (terms.centre + terms.graph).backward()
    assert terms.centre.item() == terms.graph.item() == 0
    assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_dead_features_have_finite_gradients():
    centres, dead = centres_after((features(0), TARGETS)), torch.zeros(2, F, requires_grad=True)
    terms = centres(dead, torch.tensor([0, 1]))
    (terms.centre + terms.graph).backward()
    assert dead.grad.isfinite().all()
    assert dead.grad.abs().max() < 10


def test_autocast_rounds_nothing():
    centres, halves = centres_after((features(0), TARGETS)), features(1, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = centres(halves, TARGETS)
        centres.accumulate(halves, TARGETS)
    exact = centres(halves.double(), TARGETS)
    assert terms.centre.dtype == torch.float32
    torch.testing.assert_close(torch.stack(terms), torch.stack(exact).float(), rtol=0, atol=0)
    torch.testing.assert_close(centres.sums[1, :-1], halves.double()[TARGETS == 1].sum(dim=0))


def test_a_run_goes_on_from_the_middle_of_an_epoch():
    centres = centres_after((features(0), TARGETS))
    centres.accumulate(features(1), TARGETS)
    resumed = ClassCentres(K, F)
    resumed.load_state_dict(centres.state_dict())
    for each in (centres, resumed):
        each.accumulate(features(2), TARGETS)
        each.finish_epoch()
    assert torch.equal(centres.centres, resumed.centres)
    assert torch.equal(torch.stack(centres(features(3), TARGETS)), torch.stack(resumed(features(3), TARGETS)))


def test_what_does_not_fit_is_named():
    centres = ClassCentres(K, F)
    with pytest.raises(ValueError, match=r"features: must be float \[B, 6\], got \[7, 5\]"):
        centres(features(0)[:, :5], TARGETS)
    with pytest.raises(ValueError, match=r"targets: must have as many rows as the features, 7, got 6"):
        centres.accumulate(features(0), TARGETS[:6])
    with pytest.raises(ValueError, match=r"temperature = 0"):
        centres(features(0), TARGETS, temperature=0)
