"""The cross-correlation loss: its definition, derivatives, floors, symmetries, terms, memory, and bad arguments."""

from __future__ import annotations

import doctest
import importlib
import math
import weakref
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastfgssl.kernels.cross_correlation import ALONE, Options, standardise
from fastfgssl.loss import CrossCorrelationLoss, cross_correlation_loss, cross_correlation_terms, effective_rank
from helpers.embeddings import ALGORITHMS, FORMS, compute, embeddings, loss_and_gradients

OPERATOR = vars(Options(precision="float32")) | vars(ALONE) | {"check_ranks": False}


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_autocast_computes_in_float32(dtype, algorithm):
    z1, z2 = embeddings(100, 400)
    with torch.autocast("cpu", dtype=dtype):
        loss = cross_correlation_loss(z1, z2, algorithm=algorithm)
    inside = [loss.detach(), *torch.autograd.grad(loss, (z1, z2))]
    for a, b in zip(inside, loss_and_gradients(z1, z2, algorithm=algorithm), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("N", "D"), [(6, 5), (5, 9)])
def test_gradcheck(algorithm, form, N, D):
    z1, z2 = embeddings(N, D, torch.float64)
    loss = partial(cross_correlation_loss, lambd=0.3, form=form, algorithm=algorithm)
    assert torch.autograd.gradcheck(loss, (z1, z2))
    assert torch.autograd.gradcheck(lambda z: loss(z, z2.detach()), (z1,))


def test_a_second_derivative_is_refused():
    z1, z2 = embeddings(6, 5, torch.float64)
    (gradient,) = torch.autograd.grad(cross_correlation_loss(z1, z2), z1, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        gradient.sum().backward()


def test_forward_mode_and_torch_func_give_the_gradient_and_refuse_a_second_derivative():
    z1, z2 = (z.detach() for z in embeddings(6, 5, torch.float64))
    t1, t2 = torch.ones_like(z1).cumsum(0).sin(), torch.ones_like(z2).cumsum(1).cos()
    g1, g2 = loss_and_gradients(z1.clone().requires_grad_(), z2.clone().requires_grad_())[1:]
    slope = (g1 * t1).sum() + (g2 * t2).sum()
    torch.testing.assert_close(torch.func.jvp(cross_correlation_loss, (z1, z2), (t1, t2))[1], slope)
    with torch.autograd.forward_ad.dual_level():
        dual = cross_correlation_loss(torch.autograd.forward_ad.make_dual(z1, t1), z2)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, (g1 * t1).sum())
    for derivative in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(derivative(cross_correlation_loss, argnums=1)(z1, z2), g2)
    pairs = torch.stack([z1, z2]), torch.stack([z2, z1])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(cross_correlation_loss))(*pairs)[0], g1)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.func.hessian(cross_correlation_loss)(z1, z2)


def test_the_module_is_the_function_and_its_example_runs():
    z1, z2 = embeddings(6, 5)
    options = {"lambd": 0.3, "form": "official", "algorithm": "gram"}
    module = CrossCorrelationLoss(**options)
    assert module(z1, z2) == cross_correlation_loss(z1, z2, **options)
    assert not list(module.parameters())
    assert "lambd=0.3, form='official'" in repr(module)
    assert doctest.testmod(importlib.import_module("fastfgssl.loss.cross_correlation")) == (0, 8)


def test_embeddings_may_change_after_the_loss():
    z1, z2 = embeddings(6, 5)
    expected = loss_and_gradients(z1, z2)
    moved = [z * 1 for z in (z1, z2)]
    loss = cross_correlation_loss(*moved)
    with torch.no_grad():
        for z in moved:
            z.zero_()
    for got, want in zip(torch.autograd.grad(loss, (z1, z2)), expected[1:], strict=True):
        torch.testing.assert_close(got, want)


def test_without_gradients_none_are_made():
    z1, z2 = (z.detach() for z in embeddings(6, 5))
    *_, gradient_1, gradient_2 = torch.ops.fastfgssl.cross_correlation_loss(z1, z2, **OPERATOR, with_gradients=False)
    assert gradient_1.numel() == gradient_2.numel() == 0


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest new tensor has, and how many all live ones had at most."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self._live = 0
        self._seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage()._cdata in self._seen:
                continue
            storage = tensor.untyped_storage()
            self._seen.add(storage._cdata)
            numbers = storage.nbytes() // 4
            self.largest, self._live = max(self.largest, numbers), self._live + numbers
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._freed, storage._cdata, numbers)
        return result

    def _freed(self, key, numbers) -> None:
        self._seen.discard(key)
        self._live -= numbers


@pytest.mark.parametrize(("algorithm", "N", "D"), [("gram", 40, 1000), ("direct", 100, 300), ("direct", 400, 1500)])
def test_no_d_by_d_tensor_and_little_memory(algorithm, N, D):
    z1, z2 = embeddings(N, D)
    with LargestTensor() as memory:
        compute(z1, z2, algorithm=algorithm)
    assert memory.largest < D * D
    # embeddings, standardised views, gradients and a passing product; Gram matrices or slabs
    with LargestTensor() as backward:
        loss_and_gradients(z1, z2, algorithm=algorithm)
    assert backward.peak <= memory.peak, "backward needs more than forward"
    assert memory.peak < 7 * N * D + 20 * D + 3 * (N * N if algorithm == "gram" else min(D // 2, 512) * D)


def test_terms_and_effective_rank():
    z1, z2 = (z.detach() for z in embeddings(300, 40, torch.float64))
    z1[:, 3], z2[:, 3], z2[:, 5] = 1, 2, 3
    corr = standardise(z1).T @ standardise(z2) / 300
    for algorithm in ALGORITHMS:
        terms = cross_correlation_terms(z1, z2, Options(algorithm=algorithm))
        torch.testing.assert_close(terms.on_diagonal, (1 - corr.diagonal()).square().sum())
        torch.testing.assert_close(terms.off_diagonal, (corr - corr.diagonal().diag()).square().sum())
        torch.testing.assert_close(terms.loss, terms.on_diagonal + 0.0051 * terms.off_diagonal)
        assert terms.dead_dimensions == 2
        assert terms.is_finite
        broken = z1.clone()
        broken[7, 7] = math.inf
        assert not cross_correlation_terms(broken, z2, Options(algorithm=algorithm)).is_finite
    z = torch.linalg.qr(torch.randn(64, 17) - 0.5).Q
    for rows in (z[:, :9], (z - z.mean(0)).T):
        singular = torch.linalg.svdvals(standardise(rows))
        share = singular / singular.sum()
        expected = math.exp(-(share * share.clamp(min=1e-30).log()).sum())
        assert effective_rank(rows).item() == pytest.approx(expected, rel=1e-3)
    assert effective_rank(torch.full((20, 8), math.inf)).isnan()
    assert effective_rank(torch.ones(20, 8)) == effective_rank(torch.ones(1, 8)) == 0
    line = torch.arange(200.0)[:, None] * torch.rand(1, 900)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert effective_rank(line).item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match=r"z: must be \[N, D\], got \[10\]"):
        effective_rank(torch.ones(10))
    assert effective_rank(torch.ones(20, 8) * torch.arange(20)[:, None]).item() == pytest.approx(1, abs=0.02)


def test_registration_and_no_graph_break():
    z1, z2 = embeddings(12, 20)
    operator = torch.ops.fastfgssl.cross_correlation_loss.default
    for with_gradients in (True, False):
        inputs = [z.detach() for z in (z1, z2)]
        torch.library.opcheck(operator, inputs, OPERATOR | {"with_gradients": with_gradients})
    compiled = torch.compile(lambda a, b: 3 * cross_correlation_loss(a.tanh(), b), backend="aot_eager", fullgraph=True)
    loss, expected = compiled(z1, z2), 3 * cross_correlation_loss(z1.tanh(), z2)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(*(torch.autograd.grad(x, (z1, z2)) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_symmetric_and_blind_to_shift_and_positive_scale(algorithm):
    z1, z2 = (z.detach() for z in embeddings(50, 30, torch.float64))
    loss = cross_correlation_loss(z1, z2, algorithm=algorithm)
    torch.testing.assert_close(cross_correlation_loss(z2, z1, algorithm=algorithm), loss)
    moved = cross_correlation_loss(z1 * torch.linspace(10, 20, 30) + 7, 30 * z2 - 2, algorithm=algorithm)
    torch.testing.assert_close(moved, loss, rtol=1e-3, atol=0)  # the eps of the deviation sees the scale


@pytest.mark.parametrize(("N", "D", "floor"), [(200, 512, 4.07), (2048, 8192, 123.5), (256, 8192, 1122)])
def test_no_embedding_goes_below_the_floor_and_a_good_one_comes_near(N, D, floor):
    """C has at most the rank min(D, N - 1), which bounds both forms from below (README.md of the kernel)."""
    rank = min(D, N - 1)
    a = 0.0051 * (D / rank - 1)
    bound = D * a / (1 + a)
    assert bound == pytest.approx(floor, rel=2e-3)
    if N < 2048:
        z = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
        assert bound <= cross_correlation_loss(z, z) < 1.5 * bound + 0.0051 * D**2 / N
        assert 0.0051**2 * (D - rank) <= cross_correlation_loss(z, z, form="official")


def test_orthogonal_embeddings_reach_the_floor():
    """D < N: C can be the identity, and the loss zero but for the eps."""
    z = torch.linalg.qr(torch.randn(64, 20, dtype=torch.float64) - 0.5).Q
    z = torch.linalg.qr(z - z.mean(dim=0)).Q * 8
    for form in FORMS:
        for algorithm in ALGORITHMS:
            assert cross_correlation_loss(z, z, form=form, algorithm=algorithm).abs() < 1e-8


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
        ({"precision": "float16"}, "precision = 'float16'"),
        ({"z1": [[1.0, 2.0]]}, "z1: must be a tensor, got list"),
        ({"z2": torch.zeros(4, 3, device="meta")}, "z1, z2: must be on one device, got cpu and meta"),
        ({"lambd": math.nan}, "lambd = nan"),
        ({"lambd": math.inf}, "lambd = inf"),
        ({"lambd": "0.1"}, "lambd = '0.1': must be a number greater than 0"),
        ({"z1": torch.zeros(4, 0), "z2": torch.zeros(4, 0)}, r"z1, z2: must both be \[N, D\], got \[4, 0\]"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        cross_correlation_loss(**({"z1": torch.zeros(4, 3), "z2": torch.zeros(4, 3)} | arguments))


@pytest.mark.parametrize("options", [{"form": "bogus"}, {"lambd": -1}, {"algorithm": "fast"}, {"precision": "half"}])
def test_a_module_is_not_made_with_a_bad_option(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{name} = {value!r}: must be "):
        CrossCorrelationLoss(**options)


def test_a_number_in_place_of_options_is_told():
    with pytest.raises(TypeError, match=r"^options: must be an Options, such as Options\(lambd=0.0051\), got 0.005$"):
        cross_correlation_terms(*embeddings(6, 5), 0.005)


@pytest.mark.parametrize("type", [np.float32, np.float64, Fraction])
def test_lambd_may_be_any_number(type):
    z1, z2 = embeddings(6, 5)
    assert CrossCorrelationLoss(lambd=type(0.5))(z1, z2).equal(CrossCorrelationLoss(lambd=0.5)(z1, z2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_named_in_debug_mode(monkeypatch, value):
    z1, z2 = (z.detach() for z in embeddings(6, 5))
    z2[2, 3] = value
    assert not cross_correlation_loss(z1, z2).isfinite()
    monkeypatch.setenv("FASTFGSSL_DEBUG", "1")
    with pytest.raises(ValueError, match=f"z2: 1 of 30 numbers are not finite, first {value} in row 2, column 3"):
        cross_correlation_loss(z1, z2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_term_is_negative_where_columns_are_orthogonal(algorithm):
    z = torch.ones(1, 1)
    while len(z) < 256:  # Hadamard's matrix, after Sylvester
        z = torch.cat((torch.cat((z, z), 1), torch.cat((z, -z), 1)))
    z = z[:, 1:].contiguous()
    for D in (64, 128, 255):
        terms = cross_correlation_terms(z[:, :D], z[:, :D], Options(algorithm=algorithm))
        assert 0 <= terms.off_diagonal < 1e-3
    z[3, 5] = torch.nan
    assert cross_correlation_terms(z, z, Options(algorithm=algorithm)).off_diagonal.isnan()  # a NaN is not hidden
