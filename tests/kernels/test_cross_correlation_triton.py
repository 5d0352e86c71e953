"""The Triton steps of the cross-correlation loss, one by one, against the plain ones in float64, for any row chunks."""

from __future__ import annotations

import pytest
import torch

from fastfgssl.benchmarks import loss as loss_suite
from fastfgssl.benchmarks.measure import CheckFailed, Settings, Suite
from fastfgssl.kernels.cross_correlation import Options, columns, columns_triton
from fastfgssl.kernels.cross_correlation.algorithm import cross_correlation
from helpers.embeddings import ALGORITHMS, embeddings

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")  # Triton's interpreter
WEIGHTS = {"on_weight": 1.0, "off_weight": 0.0051, "diagonal_in_product": True}
CUTS = {"one chunk": 0, "two chunks": 2, "many chunks": 10**6}
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=CUTS)
def cut(request, monkeypatch):
    """Tiles of 8 x 16, so that few rows make many chunks, and as many chunks as the case says."""
    monkeypatch.setattr(columns_triton, "TILE", {"ROWS": 8, "COLUMNS": 16})
    most = CUTS[request.param]
    monkeypatch.setattr(columns_triton, "_multiprocessors", lambda device: most)
    monkeypatch.setattr(columns_triton, "PROGRAMS_PER_SM", 2)
    return request.param


def hard_columns(N: int, D: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of different size; with enough of them, some far from zero, some constant, one that drifts."""
    z1, z2 = (z.detach() for z in embeddings(N, D))
    if D >= 8:
        z1[:, 1] += 1e4
        z2[:, 2] -= 1e4
        z1[:, 3], z2[:, 4] = 0.1, 1e4
        z1[:, 5], z2[:, 5] = 0.0, -1e4
        z1[:, 6] += torch.arange(N) * 10.0
        z2[:, 7] *= 1e-3
    return z1.to(DEVICE), z2.to(DEVICE)


SHAPES = [(2, 1), (2, 17), (8, 16), (63, 33), (200, 1), (250, 9)]


@pytest.mark.parametrize(("N", "D"), SHAPES)
def test_standardised_columns_and_what_follows_from_them(cut, N, D):
    z1, z2 = hard_columns(N, D)
    got = columns_triton.standardise(z1, z2, torch.float32, **WEIGHTS)
    truth = columns.standardise(z1, z2, torch.float64, **WEIGHTS)
    for z, statistics, want, x in zip(got.views, got.statistics_3D, truth.views, (z1, z2), strict=True):
        rstd = (x.double().var(dim=0, correction=0) + 1e-5).rsqrt()
        torch.testing.assert_close(statistics[2].double(), rstd, rtol=4 * EPS, atol=0)
        # in standard deviations, however far from zero the column is
        away = (statistics[:2].double().sum(dim=0) - x.double().mean(dim=0)) * rstd
        assert (away.abs() <= 2 * EPS).all()
        torch.testing.assert_close(z.double(), want, rtol=16 * EPS, atol=16 * EPS)
        assert (z.double().mean(dim=0).abs() <= 2 * EPS).all(), "the gradient would show the mean of z"
    torch.testing.assert_close(got.slope_D.double(), truth.slope_D, rtol=1e-5, atol=1e-6 / N)
    torch.testing.assert_close(got.totals.double(), truth.totals, rtol=1e-5, atol=1e-6)
    assert got.totals[4] == truth.totals[4]


@pytest.mark.parametrize(("N", "D"), SHAPES)
@pytest.mark.parametrize("shifted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_way_back(cut, N, D, shifted):
    z1, z2 = hard_columns(N, D)
    generator = torch.Generator().manual_seed(1)
    products = [torch.randn(N, D, generator=generator).to(DEVICE) * 100 for _ in range(2)]
    rows = slice(N // 2, N)
    results, rstd_D = [], []
    for steps, dtype in ((columns_triton, torch.float32), (columns, torch.float64)):
        standardised = steps.standardise(z1, z2, dtype, **WEIGHTS)
        toward = tuple(product[rows].to(dtype, copy=True) for product in products)
        norm = torch.tensor([3.0, 4.0], dtype=dtype, device=DEVICE)
        shared = steps.contract(norm, toward, standardised, scale=0.1, shifted=shifted, rows=rows)
        if dtype == torch.float64:  # which keeps the parts of the squared norm apart
            shared = torch.cat([shared[:2].sum(dim=0, keepdim=True), shared[2:]])
            rstd_D = standardised.rstd_D
        completed = [g.clone() for g in toward]
        results.append([shared, *completed, *steps.finish(toward, standardised, shared[1:], factor=2.0, rows=rows)])
    _, *completed = results[1][:3]
    # the last takes parts of a gradient away from it, and may be no more exact than what is left of their rounding
    sizes = [value.norm() for value in results[1][:3]]
    sizes += [(2 * rstd * g).norm() for rstd, g in zip(rstd_D, completed, strict=True)]
    for got, want, size in zip(*results, sizes, strict=True):
        assert (got.double() - want).norm() <= 1e-6 * size


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_chunks_change_nothing_but_the_rounding_and_do_not_vary(cut, algorithm):
    z1, z2 = hard_columns(35, 24)
    for with_gradients in (False, True):
        options = Options(algorithm=algorithm, precision="float32")
        first, again, plain = (
            cross_correlation(z1, z2, options, with_gradients=with_gradients, columns=steps)
            for steps in (columns_triton, columns_triton, columns)
        )
        torch.testing.assert_close(first.loss, plain.loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(first.terms, plain.terms, rtol=1e-5, atol=0)
        for a, b, c in zip(first.gradients or (), again.gradients or (), plain.gradients or (), strict=True):
            assert torch.equal(a, b)
            assert (a - c).norm() <= 1e-5 * c.norm()


@pytest.mark.slow
def test_variants_are_measured_and_undone(monkeypatch):
    variants = {"as_it_stands": {}, "autotuned": {"PROGRAMS_PER_SM": 3}}  # Triton measures tiles on a GPU alone
    monkeypatch.setattr(loss_suite, "_VARIANTS", variants)
    standing = columns_triton.PROGRAMS_PER_SM
    record = loss_suite._columns(40, 33, Suite("loss", Settings(device=DEVICE)))
    assert record.details.keys() == {"seconds_as_it_stands", "seconds_autotuned", "seconds_limit"}
    assert standing == columns_triton.PROGRAMS_PER_SM
    monkeypatch.setitem(variants, "autotuned", {"TILE": {"ROWS": 16, "COLUMNS": 16}, "STANDARDISE_EPS": 1.0})
    with pytest.raises(CheckFailed, match="steps over columns, 40 x 33, autotuned"):
        loss_suite._columns(40, 33, Suite("loss", Settings(device=DEVICE)))


def test_measuring_tiles_leaves_no_trace(monkeypatch):
    """What works in place is run once for each tile, and once more."""
    from triton.runtime.autotuner import Autotuner

    z1, z2 = hard_columns(40, 24)
    options = {"options": Options(precision="float32"), "with_gradients": True, "columns": columns_triton}
    plain = cross_correlation(z1, z2, **options)
    calls = []

    def measured(call, quantiles):
        calls.append(call())
        return [len(calls)] * 3

    monkeypatch.setattr(Autotuner, "do_bench", property(lambda tuner: measured))
    monkeypatch.setattr(columns_triton, "AUTOTUNE", True)
    columns_triton._tuned.cache_clear()
    for again in (False, True):
        tuned = cross_correlation(z1, z2, **options)
        assert len(calls) == 4 * len(columns_triton._TILES), f"measured again: {again}"
        for got, want in zip(tuned.gradients, plain.gradients, strict=True):
            assert (got - want).norm() <= 1e-5 * want.norm()
    columns_triton._tuned.cache_clear()


def test_the_number_of_chunks_follows_the_machine():
    device = torch.device("cpu")  # counts as 132 multiprocessors
    assert columns_triton.row_chunks(200, 512, device) == (32, 7)
    assert columns_triton.row_chunks(256, 8192, device) == (128, 2)
    assert columns_triton.row_chunks(4096, 2048, device) == (512, 8)
    assert columns_triton.row_chunks(10**6, 32, device) == (15648, 64)
    assert columns_triton.row_chunks(2, 10**6, device) == (32, 1)


def test_what_is_not_finite_stays_so(cut):
    z1, z2 = (z.detach().to(DEVICE) for z in embeddings(40, 20))
    z2[33, 3] = torch.inf
    for algorithm in ALGORITHMS:
        options = Options(algorithm=algorithm, precision="float32")
        result = cross_correlation(z1, z2, options, with_gradients=True, columns=columns_triton)
        assert not result.loss.isfinite()
