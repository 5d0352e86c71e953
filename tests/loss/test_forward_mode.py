"""Forward mode and `torch.func` give the slope that the gradient has, in every loss."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from fastfgssl.loss import cross_correlation_loss, negative_cosine, ntxent_loss, vicreg_terms
from fastfgssl.loss.classification import cross_entropy
from fastfgssl.loss.destruction import adversarial_loss
from fastfgssl.loss.rotation import rotation_loss

OTHER = torch.linspace(-2, 2, 6 * 8, dtype=torch.float64).sin().view(8, 6)
CLASSES = torch.tensor([0, 1, 2, 3, 4, 5, -1, 0])
LOSSES = {
    "cross-correlation": lambda z: cross_correlation_loss(z, OTHER, algorithm="gram"),
    "ntxent": lambda z: ntxent_loss(z, OTHER, temperature=0.1),
    "cosine": lambda z: negative_cosine(z, OTHER),
    "vicreg": lambda z: sum(vicreg_terms(z, OTHER)),
    "cross-entropy": lambda z: cross_entropy(z, CLASSES, class_weights=OTHER[0].abs()),
    "destruction": lambda z: adversarial_loss(z.repeat(2, 2), CLASSES),
    "rotation": lambda z: rotation_loss(z.sum(), z[:, :4], weight=0.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_slope_is_that_of_the_gradient(name):
    loss = LOSSES[name]
    z = torch.linspace(0, 5, 8 * 6, dtype=torch.float64).cos().view(8, 6)
    tangent = z.flip(0)
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    slope = (gradient * tangent).sum()
    assert slope.abs() > 1e-3
    torch.testing.assert_close(torch.func.jvp(loss, (z,), (tangent,))[1], slope)
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(z, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, slope)
    torch.testing.assert_close(torch.func.grad(loss)(z), gradient)
