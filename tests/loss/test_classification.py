"""Cross-entropy: its definition, class weights, logit adjustment, smoothing, shares, ignored images, bad arguments."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from fastfgssl.loss.classification import class_weights, cross_entropy, log_priors, soft_targets

COUNTS = [50, 30, 15, 4, 1]
K = len(COUNTS)


def logits(B=12, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(B)
    return (3 * torch.randn(B, K, generator=generator, dtype=torch.float64)).to(dtype)


TARGETS = torch.tensor([0, 4, -1, 1, 2, 3, 3, -1, 0, 0, 1, 2])


def by_definition(logits, targets, weights, priors, smoothing) -> float:
    """Written out image by image in Python's floats: torch's mean, the sum of weights for a denominator."""
    numerator = denominator = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        if target < 0:
            continue
        adjusted = [value + prior for value, prior in zip(row, priors, strict=True)]
        log_sum = math.log(sum(math.exp(value) for value in adjusted))
        for k in range(K):
            share = (1 - smoothing) * (k == target) + smoothing / K
            numerator += weights[k] * share * (log_sum - adjusted[k])
        denominator += weights[target]
    return numerator / denominator


@pytest.mark.parametrize(
    ("weighted", "adjusted", "smoothing"), list(itertools.product([False, True], [False, True], [0.0, 0.1]))
)
def test_the_value_is_that_of_the_definition_and_of_torch(weighted, adjusted, smoothing):
    n = sum(COUNTS)
    weights = [n / (K * count) for count in COUNTS] if weighted else [1.0] * K
    priors = [0.7 * math.log(count / n) for count in COUNTS] if adjusted else [0.0] * K
    loss = cross_entropy(
        logits(),
        TARGETS,
        class_weights=class_weights(COUNTS) if weighted else None,
        log_priors=log_priors(COUNTS, tau=0.7) if adjusted else None,
        label_smoothing=smoothing,
    )
    assert loss.dtype == torch.float64
    # weights and priors are float32
    assert loss.item() == pytest.approx(by_definition(logits(), TARGETS, weights, priors, smoothing), rel=1e-6)
    of_torch = F.cross_entropy(
        logits() + torch.tensor(priors),
        TARGETS,
        weight=torch.tensor(weights, dtype=torch.float64),
        label_smoothing=smoothing,
        ignore_index=-1,
    )
    assert loss.item() == pytest.approx(of_torch.item(), rel=1e-6)


def test_shares_of_one_class_are_its_number_and_of_two_are_both():
    weights = class_weights(COUNTS)
    arguments = {"label_smoothing": 0.1}
    soft = soft_targets(TARGETS, K)
    whole = cross_entropy(logits(), TARGETS, class_weights=weights, **arguments)
    torch.testing.assert_close(cross_entropy(logits(), soft, class_weights=weights, **arguments), whole)
    first, second = logits(2).chunk(2)[0], torch.tensor([0.3, 0, 0.7, 0, 0])[None]
    of_0, of_2 = (cross_entropy(first, torch.tensor([k]), **arguments) for k in (0, 2))
    torch.testing.assert_close(cross_entropy(first, second, **arguments), 0.3 * of_0 + 0.7 * of_2, rtol=1e-6, atol=0)
    of_torch = F.cross_entropy(logits(), logits(12).softmax(dim=1), **arguments)
    torch.testing.assert_close(cross_entropy(logits(), logits(12).softmax(dim=1), **arguments), of_torch)


def test_images_without_a_class_do_not_count():
    labelled = TARGETS >= 0
    torch.testing.assert_close(cross_entropy(logits(), TARGETS), cross_entropy(logits()[labelled], TARGETS[labelled]))
    # a half of whose image has no class counts half
    shares = torch.tensor([[1.0, 0, 0, 0, 0], [0, 0.5, 0, 0, 0]])
    of_0, of_1 = (cross_entropy(logits(2)[[k]], torch.tensor([k])) for k in (0, 1))
    torch.testing.assert_close(cross_entropy(logits(2), shares), (of_0 + 0.5 * of_1) / 1.5)
    for rows in (3, 0):
        some = logits(3)[:rows].requires_grad_()
        loss = cross_entropy(some, torch.full((rows,), -1), class_weights=class_weights(COUNTS))
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(some.grad, torch.zeros_like(some))


def test_gradients():
    weights, priors = class_weights(COUNTS).double(), log_priors(COUNTS).double()
    shares = logits(12).softmax(dim=1)
    for targets in (TARGETS, shares):
        assert torch.autograd.gradcheck(
            lambda z, targets=targets: cross_entropy(
                z, targets, class_weights=weights, log_priors=priors, label_smoothing=0.1
            ),
            logits().requires_grad_(),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    halves = logits(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(halves, TARGETS, label_smoothing=0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(halves.float(), TARGETS, label_smoothing=0.1), rtol=0, atol=0)


def test_weights_give_each_class_the_same_part():
    weights = class_weights(torch.tensor(COUNTS))
    torch.testing.assert_close(weights * torch.tensor(COUNTS), torch.full((K,), sum(COUNTS) / K))


def test_adjusted_logits_that_tell_nothing_apart_are_where_the_loss_is_lowest():
    """With images as frequent as the counts say, no class is favoured: plain cross-entropy would favour the first."""
    targets = torch.arange(K).repeat_interleave(torch.tensor(COUNTS))
    undecided = torch.zeros(len(targets), K, requires_grad=True)
    cross_entropy(undecided, targets, log_priors=log_priors(COUNTS)).backward()
    torch.testing.assert_close(undecided.grad.sum(dim=0), torch.zeros(K), rtol=0, atol=1e-6)
    torch.testing.assert_close(log_priors(COUNTS).exp().sum(), torch.tensor(1.0))


BAD = {
    r"logits: must be \[B, K\]": lambda: cross_entropy(torch.zeros(3), torch.zeros(3, dtype=torch.int64)),
    r"label_smoothing = 1": lambda: cross_entropy(logits(2), TARGETS[:2], label_smoothing=1),
    r"as many rows as the logits, 3, got 2": lambda: cross_entropy(logits(3), TARGETS[:2]),
    r"targets: must be int64 \[B\], or float \[B, 5\]": lambda: cross_entropy(logits(2), torch.zeros(2, 4)),
    r"class_weights: must be \[5\]": lambda: cross_entropy(logits(2), TARGETS[:2], class_weights=torch.ones(4)),
    r"log_priors: must be \[5\]": lambda: cross_entropy(logits(2), TARGETS[:2], log_priors=torch.ones(1)),
    r"counts: class 1 has no training image": lambda: class_weights([3, 0, 2]),
    r"counts: must be \[K\]": lambda: log_priors([]),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_a_class_number_that_there_is_not_is_an_error_and_not_ignored():
    with pytest.raises((RuntimeError, IndexError), match=r"smaller than num_classes|out of bounds"):
        cross_entropy(logits(2), torch.tensor([0, K]))
