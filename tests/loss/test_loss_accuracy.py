"""How exact the cross-correlation loss is: against float64, beside plain PyTorch in the same precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastfgssl.kernels.cross_correlation import Options, columns
from fastfgssl.kernels.cross_correlation.algorithm import cross_correlation
from fastfgssl.kernels.cross_correlation.reference import cross_correlation_loss_reference, standardise
from fastfgssl.loss import cross_correlation_loss
from helpers.embeddings import ALGORITHMS, FORMS, compute, embeddings, loss_and_gradients
from helpers.further import further
from helpers.loss_accuracy import (
    before_the_standardisation,
    hard_embeddings,
    in_float64,
    plain_direct,
    require_as_exact_as_plain,
)

ROUNDED_GRAM_TIMES = 1  # Gram matrices without their shift pass at 2: plain bfloat16 products are that inexact


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    """Fresh tensors are filled with NaN: what is not written stays so."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


SMALL = [(N, D) for N in (2, 63, 200, 500) for D in (1, 17, 512)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("N", "D"), SMALL)
def test_error_is_at_most_twice_that_of_the_plain_loss(form, algorithm, dtype, N, D):
    z1, z2 = embeddings(N, D, dtype)
    got = loss_and_gradients(z1, z2, form=form, algorithm=algorithm)
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got[1].dtype == got[2].dtype == dtype
    require_as_exact_as_plain(
        got, plain_direct(z1, z2, form), in_float64(z1, z2, form), before_the_standardisation(z1, z2, form)
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float64, torch.float16)])
def test_float64_stays_float64_whatever_the_precision(dtypes, algorithm):
    z1, z2 = (z.detach().to(dtype).requires_grad_() for z, dtype in zip(embeddings(30, 40), dtypes, strict=True))
    got = loss_and_gradients(z1, z2, algorithm=algorithm, precision="bfloat16")
    assert [value.dtype for value in got] == [torch.float64, *dtypes]
    truth = cross_correlation_loss(z1.detach(), z2.detach().double(), algorithm=algorithm)
    torch.testing.assert_close(got[0].detach(), truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("N", "D"),
    [
        *[(63, 2047), (200, 2047), (2048, 17), (2048, 512), (2, 8192)],
        *(pytest.param(*shape, marks=pytest.mark.slow) for shape in [(500, 2047), (2048, 2047), (200, 8192)]),
    ],
)
def test_error_of_large_shapes(algorithm, N, D):
    z1, z2 = embeddings(N, D)
    got = loss_and_gradients(z1, z2, algorithm=algorithm)
    # with two rows, a Gram matrix adds 8192 numbers of one sign where C adds up two
    units = 4e-6 if N == 2 else 4e-7
    require_as_exact_as_plain(got, plain_direct(z1, z2, "barlow"), in_float64(z1, z2, "barlow"), units=units)


@pytest.mark.slow
def test_error_of_the_largest_shape():
    """Its plain loss in float32 takes 16 seconds, so `auto` alone is compared with it."""
    z1, z2 = embeddings(2048, 8192)
    require_as_exact_as_plain(loss_and_gradients(z1, z2), plain_direct(z1, z2, "barlow"), in_float64(z1, z2, "barlow"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("algorithm", "N", "D"),
    [("gram", 2, 17), ("gram", 63, 300), ("gram", 200, 512), ("gram", 256, 4096)]
    + [("direct", N, D) for N, D in ((2, 1), (63, 17), (300, 63), (500, 512), (200, 300))],
)
def test_error_of_bfloat16_products_is_at_most_twice_that_of_the_plain_loss(form, algorithm, N, D):
    z1, z2 = embeddings(N, D)
    got = compute(z1, z2, form=form, algorithm=algorithm, precision="bfloat16")
    before = before_the_standardisation(z1, z2, form)
    plain, truth = plain_direct(z1, z2, form, rounded=True), in_float64(z1, z2, form)
    require_as_exact_as_plain(got, plain, truth, before, times=ROUNDED_GRAM_TIMES if algorithm == "gram" else 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("case", ["dead features", "nearly collinear", "1e-4", "1e4"])
def test_error_of_hard_embeddings(case, rounded, algorithm, form):
    z1, z2 = hard_embeddings(case)
    precision = "bfloat16" if rounded else "float32"
    got = compute(z1, z2, form=form, algorithm=algorithm, precision=precision)
    before = before_the_standardisation(z1, z2, form)
    require_as_exact_as_plain(got, plain_direct(z1, z2, form, rounded), in_float64(z1, z2, form), before)


@pytest.fixture
def rounding_interpreter(monkeypatch):
    """Triton's interpreter cuts numbers to bfloat16; here it rounds them, as a GPU does."""
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(data, source, target, mode):
        if (source.name, target.name) != ("fp32", "bf16"):
            return convert(data, source, target, mode)
        return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's kernels run on the GPU here (gpu/test_core.py)")
@pytest.mark.parametrize(
    ("rounded", "form"),
    [(True, FORMS[0]), (False, FORMS[1]), *further((True, FORMS[1]), (False, FORMS[0]))],
)
@pytest.mark.parametrize(
    ("algorithm", "N", "D", "dtype"),
    [
        ("gram", 2, 17, torch.float32),
        ("gram", 65, 300, torch.float16),
        *further(("gram", 40, 512, torch.float32)),
        ("direct", 2, 1, torch.float32),
        ("direct", 63, 17, torch.bfloat16),
        ("direct", 200, 33, torch.float32),
        ("direct", 65, 64, torch.float16),
    ],
)
def test_error_of_tritons_steps(rounding_interpreter, algorithm, N, D, dtype, rounded, form):
    from fastfgssl.kernels.cross_correlation import columns_triton

    z1, z2 = embeddings(N, D, dtype)
    precision = "bfloat16" if rounded else "float32"
    got = compute(z1, z2, form=form, algorithm=algorithm, precision=precision, columns=columns_triton)
    plain, truth = plain_direct(z1, z2, form, rounded), in_float64(z1, z2, form)
    before = before_the_standardisation(z1, z2, form)
    require_as_exact_as_plain(got, plain, truth, before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's kernels run on the GPU here (gpu/test_core.py)")
@pytest.mark.parametrize(
    "case",
    ["dead features", *further("nearly collinear", "1e-4", "1e4")],
)
def test_error_of_tritons_steps_on_hard_embeddings(case):
    from fastfgssl.kernels.cross_correlation import columns_triton

    z1, z2 = hard_embeddings(case)
    got = compute(z1, z2, algorithm="gram", columns=columns_triton)
    plain, truth = plain_direct(z1, z2, "barlow"), in_float64(z1, z2, "barlow")
    require_as_exact_as_plain(got, plain, truth, before_the_standardisation(z1, z2, "barlow"))
    with_torch = cross_correlation(z1.detach(), z2.detach(), Options(precision="float32"), with_gradients=False)
    with_triton = cross_correlation(
        z1.detach(), z2.detach(), Options(precision="float32"), with_gradients=False, columns=columns_triton
    )
    dead = {"dead features": 3, "1e-4": 150}.get(case, 0)
    assert with_triton.terms[2] == with_torch.terms[2] == dead


def _lambda_on_the_diagonal(z1, z2):
    corr = standardise(z1).T @ standardise(z2) / len(z1)
    on, off = (1 - corr.diagonal()).square().sum(), corr.square().sum() - corr.diagonal().square().sum()
    return 0.0051 * on + off


def _per_rank_statistics(z1, z2):
    s1, s2 = (torch.cat([standardise(part) for part in z.chunk(2)]) for z in (z1, z2))
    return cross_correlation_loss_reference(s1, s2, lambd=0.0051, form="barlow")


def _gradient_of_one_rank(z1, z2):
    loss = cross_correlation_loss(z1, z2)
    return loss.detach() + (loss - loss.detach()) / 2


def _unbiased_variance(z1, z2):
    factor = math.sqrt((len(z1) - 1) / len(z1))
    return cross_correlation_loss_reference(factor * standardise(z1), standardise(z2), lambd=0.0051, form="barlow")


@pytest.mark.parametrize(
    "wrong", [_lambda_on_the_diagonal, _per_rank_statistics, _gradient_of_one_rank, _unbiased_variance]
)
def test_the_checker_rejects_wrong_losses(wrong):
    z1, z2 = embeddings(200, 300)
    loss = wrong(z1, z2)
    got = [loss.detach(), *torch.autograd.grad(loss, (z1, z2))]
    with pytest.raises(AssertionError, match="allowed"):
        require_as_exact_as_plain(got, plain_direct(z1, z2, "barlow"), in_float64(z1, z2, "barlow"))


def test_the_checker_rejects_grams_that_are_rounded_without_their_shift(monkeypatch):
    def unshifted(k1, k2, shifts, first, dtype):
        shifts.zero_()
        return with_shift(k1, k2, shifts, first, dtype)

    with_shift = columns.inner_product_and_shift
    monkeypatch.setattr(columns, "inner_product_and_shift", unshifted)
    z1, z2 = embeddings(256, 4096)
    got = compute(z1, z2, form="official", algorithm="gram", precision="bfloat16")
    with pytest.raises(AssertionError, match="gradient 1"):
        require_as_exact_as_plain(
            got, plain_direct(z1, z2, "official", True), in_float64(z1, z2, "official"), times=ROUNDED_GRAM_TIMES
        )
