"""The cross-correlation loss over several ranks: exact, overlapped, counted, and without a hang."""

from __future__ import annotations

import os

import pytest
import torch

from fastfgssl.kernels.cross_correlation import Options, Ranks, columns, ranks
from fastfgssl.kernels.cross_correlation.algorithm import cross_correlation
from fastfgssl.loss import cross_correlation_loss, cross_correlation_terms, effective_rank, loss_traffic
from fastfgssl.runtime.distributed import data_parallel, start_world
from helpers.embeddings import ALGORITHMS, FORMS, embeddings
from helpers.ranks import run_on_ranks


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


WAYS = [(algorithm, form) for algorithm in (*ALGORITHMS, "auto") for form in FORMS]


def gradients_on_rank(world, x1, x2):
    """Loss and gradients of a network under data parallelism, on this rank's part of the batch, each way."""
    rows = slice(world.rank * len(x1) // world.size, (world.rank + 1) * len(x1) // world.size)
    found = []
    for algorithm, form in WAYS:
        step = SmallStep(world.group, algorithm, form)
        parallel = data_parallel(step, world)
        loss = parallel(x1[rows], x2[rows])
        loss.backward()
        found.append((loss.item(), [parameter.grad for parameter in step.parameters()]))
    return found


_RANKS_AND_ROWS = [(2, 2), (3, 24), *(pytest.param(ranks, 24, marks=pytest.mark.slow) for ranks in (1, 2, 4))]


@pytest.mark.parametrize(("world_size", "num_rows"), _RANKS_AND_ROWS)
def test_gradients_of_ranks_are_those_of_one_process_on_the_whole_batch(world_size, num_rows):
    generator = torch.Generator().manual_seed(1)
    x1, x2 = (torch.randn(num_rows, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    by_rank = run_on_ranks(gradients_on_rank, world_size, x1, x2)
    for index, (_, form) in enumerate(WAYS):
        alone = SmallStep(None, "direct", form)
        loss = alone(x1, x2)
        loss.backward()
        for rank in by_rank:
            value, gradients = rank[index]
            assert value == pytest.approx(loss.item(), rel=1e-12)
            for got, parameter in zip(gradients, alone.parameters(), strict=True):
                torch.testing.assert_close(got, parameter.grad, rtol=1e-9, atol=1e-14)


def terms_on_rank(world, z1, z2):
    """Terms, the bytes that collectives were handed, and gradients of this rank's rows, each way."""
    sent = []

    class Counted:
        """torch's functional collectives, whose first argument is what is sent."""

        def __getattr__(self, name):
            def collective(*args):
                sent.append(0 if name == "wait_tensor" else args[0].nbytes)
                return getattr(torch.ops._c10d_functional, name)(*args)

            return collective

    ranks._collectives = Counted()
    rows = slice(world.rank * len(z1) // world.size, (world.rank + 1) * len(z1) // world.size)
    found = {"effective rank": effective_rank(z1[rows], world.group).item()}
    for dtype, precision, _ in PRECISIONS:
        own = [z[rows].to(dtype).requires_grad_() for z in (z1, z2)]
        for algorithm in ALGORITHMS:
            sent.clear()
            options = Options(algorithm=algorithm, precision=precision)
            terms = cross_correlation_terms(*own, options, group=world.group, check_ranks=False)
            gradients = [gradient / world.size for gradient in torch.autograd.grad(terms.loss, own)]
            found[dtype, algorithm] = (*(term.item() for term in terms), sum(sent), *gradients)
    return found


PRECISIONS = [
    (torch.float32, "float32", {"rtol": 1e-5, "atol": 1e-6}),
    (torch.float64, "float32", {"rtol": 1e-9, "atol": 1e-9}),
    (torch.bfloat16, "bfloat16", {"rtol": 5e-2, "atol": 1e-3}),
]


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_knows_the_terms_of_the_whole_batch_and_sends_what_the_formula_says(world_size):
    z1, z2 = (z.detach().bfloat16().float() for z in embeddings(40, 96))
    by_rank = run_on_ranks(terms_on_rank, world_size, z1, z2)
    for dtype, precision, tolerance in PRECISIONS:
        whole = [z.to(dtype).requires_grad_() for z in (z1, z2)]
        for algorithm in ALGORITHMS:
            terms = cross_correlation_terms(*whole, Options(algorithm=algorithm, precision=precision))
            alone = torch.autograd.grad(terms.loss, whole)
            results = [rank[dtype, algorithm] for rank in by_rank]
            for *values, sent, _, _ in results:
                assert values == pytest.approx([term.item() for term in terms], rel=tolerance["rtol"])
                assert sent == sum(loss_traffic(40 // world_size, 96, element_size=dtype.itemsize))
            assert len({tuple(result[:4]) for result in results}) == 1, "ranks log different values"
            for side, expected in enumerate(alone):
                together = torch.cat([result[5 + side] for result in results])
                torch.testing.assert_close(together, expected, **tolerance)
    for rank in by_rank:
        assert rank["effective rank"] == pytest.approx(effective_rank(z1).item(), rel=1e-4)


class OneOfTwo(Ranks):
    """A rank that notes the order of what it is asked for; the other rank's rows are its own again."""

    def begin_gather(self, rows):
        number = sum(event.startswith("begin") for event in events)
        events.append(f"begin {number}")

        def wait():
            events.append(f"wait {number}")
            return torch.cat([rows, rows])

        return wait

    def all_reduce(self, values):
        events.append("add up")


events: list[str] = []


def test_both_views_are_on_their_way_before_either_is_waited_for(monkeypatch):
    standardise = columns.standardise
    events.clear()

    def noted(*arguments, **weights):
        events.append("standardise")
        return standardise(*arguments, **weights)

    monkeypatch.setattr(columns, "standardise", noted)
    z1, z2 = (z.detach() for z in embeddings(6, 20))
    cross_correlation(z1, z2, Options(precision="float32"), with_gradients=True, ranks=OneOfTwo("pair", 0, 2))
    assert events == ["begin 0", "begin 1", "wait 0", "wait 1", "standardise", "add up"]


ERRORS = {
    "rows": "[6, 4, 'torch.float32', 'torch.float32', True, 0.0051, 'barlow', 'auto', 'float32'] on rank 0, [5, 4, ",
    "lambd": "0.1, 'barlow', 'auto', 'float32'] on rank 1",
    "algorithm": "'gram', 'float32'] on rank 1",
    "gradients": "False, 0.0051, 'barlow', 'auto', 'float32'] on rank 1",
    "text": "lambd = '0.1': must be a number greater than 0",
    "dtype": "z1: must be of a float dtype, got torch.int32",
    "shape": "z1, z2: must both be [N, D], got [6, 4] and [6, 3]",
    "nothing": None,
}


def errors_on_rank(world):
    """What each rank is told when rank 1 does something else than the others."""
    told = {}
    for case in ERRORS:
        z1, z2, options = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4), {}
        if world.rank == 1:
            if case == "rows":
                z1, z2 = z1[:5], z2[:5]
            elif case == "lambd":
                options = {"lambd": 0.1}
            elif case == "algorithm":
                options = {"algorithm": "gram"}
            elif case == "gradients":
                z1 = z1.detach()
            elif case == "text":
                options = {"lambd": "0.1"}
            elif case == "dtype":
                z1 = z1.int()
            elif case == "shape":
                z2 = z2[:, :3]
        try:
            told[case] = cross_correlation_loss(z1, z2, group=world.group, **options) and None
        except ValueError as error:
            told[case] = str(error)
    return told


def test_what_does_not_fit_on_one_rank_is_an_error_on_all():
    for rank, told in enumerate(run_on_ranks(errors_on_rank, 3)):
        assert told["nothing"] is None, "an error spoils what follows"
        for case, message in ERRORS.items():
            if message is not None:
                assert message in told[case]
                own = case in ("text", "dtype", "shape")
                assert ("(on rank 1)" in told[case]) == (own and rank != 1)


def looks_in_two_groups_of_a_name(_):
    """Two trainings of a process: what the ranks of the second are told that bring different things."""
    ranks.HOST_WAITS_FOR = ()
    z = torch.randn(6, 4)
    names, told = [], None
    for differ in (False, True):
        # a store of its own for each, as launchers that share no port have it
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + differ)
        with start_world("cpu") as world:
            names.append(world.group.group_name)
            for rows in (6, 5):
                try:
                    part = z[: rows - (world.rank if differ else 0)]
                    cross_correlation_loss(part, part, group=world.group)
                except ValueError as error:
                    told = told or str(error)
    return names, told


@pytest.mark.slow  # ranks exchange what differs in length: once in hundreds of times gloo does not survive that
def test_what_was_agreed_in_a_group_is_not_taken_over_by_the_next():
    for names, told in run_on_ranks(looks_in_two_groups_of_a_name, 2, join=False):
        assert names[0] == names[1]
        assert "ranks differ: [6, 4, " in told


def looks_on_rank(world):
    """How often a rank whose host would wait for it looks at what others bring, and what it is told in the end."""
    ranks.HOST_WAITS_FOR = ()
    looks, compare = [], ranks._compare
    ranks._compare = lambda *arguments: looks.append(compare(*arguments))
    z = torch.randn(6, 4)
    for rows in (6, 6, 5, 6, 5):
        cross_correlation_loss(z[:rows], z[:rows], group=world.group)
    try:
        cross_correlation_loss(z[: 3 + world.rank], z[: 3 + world.rank], group=world.group)
    except ValueError as error:
        return len(looks), str(error)


def test_a_host_that_would_wait_for_it_looks_once_at_each_thing():
    for looks, told in run_on_ranks(looks_on_rank, 2):
        assert looks == 2
        assert "ranks differ: [3, 4, " in told


def step_on_compiled_rank(world, z1, z2):
    rows = slice(world.rank * 6, world.rank * 6 + 6)
    z1, z2 = (z[rows].detach().requires_grad_() for z in (z1, z2))

    def loss(a, b):
        return 2 * cross_correlation_loss(a.tanh(), b, group=world.group)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = [[value.detach(), *torch.autograd.grad(value, (z1, z2))] for value in (compiled(z1, z2), loss(z1, z2))]
    one_row = [compiled(z1[:1], z2[:1]).item(), loss(z1[:1], z2[:1]).item()]
    try:
        compiled(z1[world.rank :], z2[world.rank :])
        told = None
    except ValueError as error:
        told = str(error)
    return results, one_row, told


def test_no_graph_break_over_ranks():
    z1, z2 = embeddings(12, 20)
    for (compiled, eager), one_row, told in run_on_ranks(step_on_compiled_rank, 2, z1, z2):
        for got, want in zip(compiled, eager, strict=True):
            torch.testing.assert_close(got, want)
        assert one_row[0] == pytest.approx(one_row[1])
        assert "ranks differ: [6, 20" in told
