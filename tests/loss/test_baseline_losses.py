"""The losses that ours is compared with: their papers' formulas, exact over ranks, and what lightly makes of them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from fastfgssl.kernels.cross_correlation import ranks
from fastfgssl.loss import cross_correlation_loss, negative_cosine, ntxent_loss, vicreg_terms
from fastfgssl.loss.whole_batch import gather_traffic
from fastfgssl.runtime.distributed import World, data_parallel
from helpers.embeddings import embeddings
from helpers.ranks import run_on_ranks


def ntxent_of_paper(z1: np.ndarray, z2: np.ndarray, temperature: float) -> float:
    """arXiv 2002.05709, equation 1 and algorithm 1: views 2k - 1 and 2k (here from 0) are of one image."""
    z = np.stack([z1, z2], axis=1).reshape(-1, z1.shape[1])

    def sim(i, j):
        return z[i] @ z[j] / (np.linalg.norm(z[i]) * np.linalg.norm(z[j]))

    def ell(i, j):
        others = sum(np.exp(sim(i, k) / temperature) for k in range(len(z)) if k != i)
        return -np.log(np.exp(sim(i, j) / temperature) / others)

    return sum(ell(k, k + 1) + ell(k + 1, k) for k in range(0, len(z), 2)) / len(z)


def vicreg_of_paper(z1: np.ndarray, z2: np.ndarray, lambd: float, mu: float, nu: float) -> list[float]:
    """arXiv 2105.04906, equations 1 to 6 with the mean squared error of algorithm 1: the loss, s, v + v', c + c'."""
    d = z1.shape[1]

    def v(z):
        return sum(max(0.0, 1 - np.sqrt(np.var(z[:, j], ddof=1) + 1e-4)) for j in range(d)) / d

    def c(z):
        matrix = np.cov(z, rowvar=False)
        return sum(matrix[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d

    terms = [((z1 - z2) ** 2).mean(), v(z1) + v(z2), c(z1) + c(z2)]
    return [lambd * terms[0] + mu * terms[1] + nu * terms[2], *terms]


def cosine_of_paper(p: np.ndarray, z: np.ndarray) -> float:
    """arXiv 2011.10566, equation 1, the mean over images."""
    return np.mean([-(a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)) for a, b in zip(p, z, strict=True)])


def views(rows: int, dim: int, dtype=torch.float64) -> list[torch.Tensor]:
    """Two views with features of sizes from 0.1 to 10, so that some vary too little for VICReg and some do not."""
    return [z.detach().requires_grad_() for z in embeddings(rows, dim, dtype)]


# more rows than features, and fewer
SHAPES = [(9, 4), (5, 8), (2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_papers(shape):
    z1, z2 = views(*shape)
    arrays = [z.detach().numpy() for z in (z1, z2)]
    assert ntxent_loss(z1, z2, temperature=0.3).item() == pytest.approx(ntxent_of_paper(*arrays, 0.3), rel=1e-12)
    assert negative_cosine(z1, z2).item() == pytest.approx(cosine_of_paper(*arrays), rel=1e-12)
    terms = [term.item() for term in vicreg_terms(z1, z2, weights=(20.0, 5.0, 2.0))]
    assert terms == pytest.approx(vicreg_of_paper(*arrays, 20.0, 5.0, 2.0), rel=1e-12)
    assert terms[2] > 0, "no feature varies too little"


LOSSES = {
    "ntxent": ntxent_loss,
    "vicreg": lambda *z, **group: vicreg_terms(*z, **group).loss,
    "cosine": lambda *z, group=None: negative_cosine(*z),
    "barlow": cross_correlation_loss,
}


@pytest.mark.parametrize("name", ["ntxent", "vicreg", "cosine"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_values(name, shape):
    assert torch.autograd.gradcheck(LOSSES[name], views(*shape))


@pytest.mark.parametrize("name", ["ntxent", "vicreg", "cosine"])
def test_sixteen_bits_are_rounded_once_whatever_autocast_would_do(name):
    halves = [z.detach().bfloat16() for z in views(24, 12)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = LOSSES[name](*halves)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), LOSSES[name](*(z.double() for z in halves)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ntxent", "vicreg", "cosine"])
def test_other_shapes_are_an_error(name):
    for first, second in (((4, 3), (4, 2)), ((4,), (4,))):
        with pytest.raises(ValueError, match=rf"must both be \[N, [DE]\], got \[{first[0]}.* and \[{second[0]}"):
            LOSSES[name](torch.ones(first), torch.ones(second))
    if name != "cosine":  # which looks at rows one by one
        with pytest.raises(ValueError, match="must have two rows or more"):
            LOSSES[name](torch.ones(1, 3), torch.ones(1, 3))


class Embed(torch.nn.Module):
    """A small network and a loss of its two views, as an update has them."""

    def __init__(self, name: str, group) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 12)).double()
        self.loss = partial(LOSSES[name], group=group)

    def forward(self, x1, x2):
        return self.loss(self.network(x1), self.network(x2))


def losses_on_rank(world, x1, x2):
    """For each loss its value, the gradients that data parallelism leaves, and the bytes that it sent."""
    sent = []

    class Counted:
        """torch's functional collectives, whose first argument is what is sent."""

        def __getattr__(self, name):
            def collective(*args):
                sent.append(0 if name == "wait_tensor" else args[0].nbytes)
                return getattr(torch.ops._c10d_functional, name)(*args)

            return collective

    if world.group is not None:  # in a process that ends with it
        ranks._collectives = Counted()
    rows = slice(world.rank * len(x1) // world.size, (world.rank + 1) * len(x1) // world.size)
    found = {}
    for name in LOSSES:
        update = Embed(name, world.group)
        parallel = data_parallel(update, world)
        sent.clear()
        loss = parallel(x1[rows], x2[rows])
        loss.backward()
        found[name] = (loss.item(), [weight.grad for weight in update.parameters()], sum(sent))
    return found


@pytest.mark.parametrize("world_size", [1, 3])  # two train in tests/training/test_baseline_steps.py
def test_gradients_of_ranks_are_those_of_one_process_on_the_whole_batch(world_size):
    generator = torch.Generator().manual_seed(1)
    x1, x2 = (torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    alone = World.alone(torch.device("cpu"))
    by_rank = [losses_on_rank(alone, x1, x2)] if world_size == 1 else run_on_ranks(losses_on_rank, world_size, x1, x2)
    for name in LOSSES:
        whole = Embed(name, None)
        loss = whole(x1, x2)
        loss.backward()
        values = [rank[name][0] for rank in by_rank]
        # what does not look at other rows is a rank's own: its mean is reported
        values = [np.mean(values)] if name == "cosine" else values
        assert values == pytest.approx([loss.item()] * len(values), rel=1e-12)
        for _, gradients, sent in (rank[name] for rank in by_rank):
            for got, weight in zip(gradients, whole.parameters(), strict=True):
                torch.testing.assert_close(got, weight.grad, rtol=1e-9, atol=1e-14)
            if name in ("ntxent", "vicreg") and world_size > 1:
                assert sent == sum(gather_traffic(12 // world_size, 12, element_size=8))
            elif name == "cosine":
                assert sent == 0


@pytest.mark.parametrize("shape", [(32, 12), (6, 20)])
def test_values_and_gradients_are_those_of_lightly(shape):
    lightly = pytest.importorskip("lightly.loss", reason="needs the extra baselines")
    theirs = {
        "ntxent": (lightly.NTXentLoss(temperature=0.1), {}),
        "cosine": (lightly.NegativeCosineSimilarity(), {}),
        # it halves the variance term, as the authors' code does and their paper does not
        "vicreg": (lightly.VICRegLoss(lambda_param=25.0, mu_param=50.0, nu_param=1.0), {}),
        # it adds 1e-5 to variances, as batch norm does
        "barlow": (lightly.BarlowTwinsLoss(lambda_param=0.0051), {"rtol": 1e-3, "atol": 1e-3}),
    }
    for name, (criterion, tolerance) in theirs.items():
        own, other = views(*shape), views(*shape)
        got, want = LOSSES[name](*own), criterion(*other)
        torch.testing.assert_close(got, want, **tolerance)
        for a, b in zip(torch.autograd.grad(got, own), torch.autograd.grad(want, other), strict=True):
            torch.testing.assert_close(a, b, **tolerance)
