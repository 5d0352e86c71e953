"""The cross-correlation loss: against float64, its floors and symmetries, and over several ranks."""

from __future__ import annotations

import math

import pytest
import torch
from ranks import run_on_ranks

from fastfgssl.distributed import data_parallel
from fastfgssl.kernels.cross_correlation.gram import GramLoss
from fastfgssl.kernels.cross_correlation.reference import cross_correlation_loss_reference, standardise
from fastfgssl.loss import cross_correlation_loss

FORMS = ("barlow", "official")
ALGORITHMS = ("direct", "gram")


def embeddings(N, D, dtype=torch.float32, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views that agree in part, with columns of different size and offset."""
    generator = torch.Generator().manual_seed(seed)
    common, noise_1, noise_2 = (torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(3))
    scale = torch.logspace(-1, 1, D, dtype=torch.float64)
    return tuple(((common + 0.5 * noise) * scale + 3).to(dtype).requires_grad_() for noise in (noise_1, noise_2))


def loss_and_gradients(z1, z2, **arguments) -> list[torch.Tensor]:
    loss = cross_correlation_loss(z1, z2, **arguments)
    return [loss.detach(), *torch.autograd.grad(loss, (z1, z2))]


def by_definition(z1, z2, lambd, form) -> torch.Tensor:
    """Written out entry by entry, in float64."""
    z1, z2 = z1.double(), z2.double()
    N, D = z1.shape
    total = 0.0
    for i in range(D):
        for j in range(D):
            a, b = z1[:, i], z2[:, j]
            a = (a - a.mean()) / math.sqrt(a.var(unbiased=False) + 1e-5)
            b = (b - b.mean()) / math.sqrt(b.var(unbiased=False) + 1e-5)
            c = float((a * b).sum() / N)
            if form == "barlow":
                total += (1 - c) ** 2 if i == j else lambd * c**2
            else:
                total += lambd**2 * (c - (i == j)) ** 2
    return torch.tensor(total)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_value_is_that_of_the_definition(form, algorithm):
    z1, z2 = (z.detach() for z in embeddings(9, 7, torch.float64))
    loss = cross_correlation_loss(z1, z2, lambd=0.02, form=form, algorithm=algorithm)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, by_definition(z1, z2, 0.02, form).double())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("N", "D"), [(2, 1), (2, 17), (63, 17), (200, 512), (64, 300)])
def test_error_is_at_most_twice_that_of_the_plain_loss_in_float32(form, algorithm, N, D):
    z1, z2 = embeddings(N, D)
    truth = loss_and_gradients(*(z.detach().double().requires_grad_() for z in (z1, z2)), form=form, algorithm="direct")

    def plain() -> list[torch.Tensor]:
        loss = cross_correlation_loss_reference(standardise(z1), standardise(z2), lambd=0.0051, form=form)
        return [loss.detach(), *torch.autograd.grad(loss, (z1, z2))]

    for got, reference, true in zip(
        loss_and_gradients(z1, z2, form=form, algorithm=algorithm), plain(), truth, strict=True
    ):
        # the last term is for values that are zero but for rounding
        assert (got - true).norm() <= 2 * (reference - true).norm() + 1e-6 * (true.norm() + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_autocast_and_half_inputs_compute_in_float32(dtype, algorithm):
    z1, z2 = embeddings(100, 400)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_correlation_loss(z1, z2, algorithm=algorithm)
    inside = [loss.detach(), *torch.autograd.grad(loss, (z1, z2))]
    for a, b in zip(inside, loss_and_gradients(z1, z2, algorithm=algorithm), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    halves = [z.detach().to(dtype).requires_grad_() for z in (z1, z2)]
    loss, *gradients = loss_and_gradients(*halves, algorithm=algorithm)
    assert loss.dtype == torch.float32
    assert gradients[0].dtype == dtype
    exact = loss_and_gradients(*(z.detach().double().requires_grad_() for z in halves))
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_the_gram_form(form):
    z1, z2 = (standardise(z.detach()).requires_grad_() for z in embeddings(6, 5, torch.float64))
    assert torch.autograd.gradcheck(lambda a, b: GramLoss.apply(a, b, 0.3, form), (z1, z2))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_symmetric_and_blind_to_shift_and_positive_scale(algorithm):
    z1, z2 = (z.detach() for z in embeddings(50, 30, torch.float64))
    loss = cross_correlation_loss(z1, z2, algorithm=algorithm)
    torch.testing.assert_close(cross_correlation_loss(z2, z1, algorithm=algorithm), loss)
    moved = cross_correlation_loss(z1 * torch.linspace(10, 20, 30) + 7, 30 * z2 - 2, algorithm=algorithm)
    torch.testing.assert_close(moved, loss, rtol=1e-3, atol=0)  # the eps of the deviation sees the scale


@pytest.mark.parametrize(("N", "D", "floor"), [(200, 512, 4.07), (256, 1024, None)])
def test_no_embedding_goes_below_the_floor_and_a_good_one_comes_near(N, D, floor):
    rank = min(D, N - 1)
    a = 0.0051 * (D / rank - 1)
    bound = D * a / (1 + a)
    if floor:
        assert bound == pytest.approx(floor, rel=1e-2)
    z = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert bound <= cross_correlation_loss(z, z) < 1.5 * bound + 0.0051 * D**2 / N


def test_dead_and_constant_features_leave_everything_finite():
    z1, z2 = embeddings(40, 8)
    with torch.no_grad():
        z1[:, 2] = 0
        z2[:, 3] = -5
        z1[:, 4] = z1[:, 5] * (1 + 1e-7)
    for algorithm in ALGORITHMS:
        assert all(value.isfinite().all() for value in loss_and_gradients(z1, z2, algorithm=algorithm))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"z2": torch.zeros(4, 4)}, r"z1, z2: must both be \[N, D\], got \[4, 3\] and \[4, 4\]"),
        ({"z1": torch.zeros(4), "z2": torch.zeros(4)}, "z1, z2"),
        ({"z1": torch.zeros(1, 3), "z2": torch.zeros(1, 3)}, "batch of 1"),
        ({"z1": torch.zeros(4, 3, dtype=torch.int32)}, "z1: must be of a float dtype"),
        ({"lambd": 0.0}, "lambd = 0.0"),
        ({"form": "barlows"}, "form = 'barlows'"),
        ({"algorithm": "fast"}, "algorithm = 'fast'"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        cross_correlation_loss(**({"z1": torch.zeros(4, 3), "z2": torch.zeros(4, 3)} | arguments))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 12)).double()


class SmallStep(torch.nn.Module):
    def __init__(self, group, algorithm, form) -> None:
        super().__init__()
        self.network = network()
        self.arguments = {"group": group, "algorithm": algorithm, "form": form}

    def forward(self, x1, x2):
        return cross_correlation_loss(self.network(x1), self.network(x2), **self.arguments)


def gradients_on_rank(world, x1, x2, algorithm, form):
    """Loss and gradients of a network under data parallelism, on this rank's part of the batch."""
    step = SmallStep(world.group, algorithm, form)
    rows = slice(world.rank * len(x1) // world.size, (world.rank + 1) * len(x1) // world.size)
    parallel = data_parallel(step, world)
    loss = parallel(x1[rows], x2[rows])
    loss.backward()
    return loss.item(), [parameter.grad for parameter in step.parameters()]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradients_of_ranks_are_those_of_one_process_on_the_whole_batch(world_size, form):
    generator = torch.Generator().manual_seed(1)
    x1, x2 = (torch.randn(24, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    alone = SmallStep(None, "direct", form)
    loss = alone(x1, x2)
    loss.backward()
    for algorithm in ALGORITHMS:
        for value, gradients in run_on_ranks(gradients_on_rank, world_size, x1, x2, algorithm, form):
            assert value == pytest.approx(loss.item(), rel=1e-12)
            for got, parameter in zip(gradients, alone.parameters(), strict=True):
                torch.testing.assert_close(got, parameter.grad, rtol=1e-9, atol=1e-14)
