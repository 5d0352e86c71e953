"""What ranks say to each other: batch statistics, sums, flags, agreement."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from fastfgssl.models.batch_norm import synchronise_batch_norm
from fastfgssl.runtime.agreement import SharedFlag, lost_ranks, on_this_rank, require_agreement, shared_errors
from fastfgssl.runtime.collectives import sum_over_ranks
from fastfgssl.runtime.console import run_tool
from fastfgssl.runtime.distributed import start_world
from fastfgssl.runtime.errors import RankError, UserError
from helpers.ranks import run_on_ranks


def small_network() -> nn.Module:
    torch.manual_seed(0)
    convolution = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*convolution, nn.Linear(16, 3), nn.BatchNorm1d(3))


def forward_and_backward(network: nn.Module, images: torch.Tensor, upstream: torch.Tensor):
    outputs = network(images)
    outputs.backward(upstream)
    return outputs.detach(), [p.grad for p in network.parameters()], network.state_dict()


def with_synchronised_norms(world, images, upstream):
    network = synchronise_batch_norm(small_network(), world)
    part = slice(world.rank * 2, world.rank * 2 + 2)
    return forward_and_backward(network, images[part], upstream[part])


def test_synchronised_batch_norm_is_that_of_one_process():
    images, upstream = torch.randn(4, 2, 4, 4), torch.randn(4, 3)
    outputs, gradients, state = forward_and_backward(small_network(), images, upstream)
    ranks = run_on_ranks(with_synchronised_norms, 2, images, upstream)
    torch.testing.assert_close(torch.cat([rank[0] for rank in ranks]), outputs, rtol=1e-4, atol=1e-5)
    for index, gradient in enumerate(gradients):
        torch.testing.assert_close(sum(rank[1][index] for rank in ranks), gradient, rtol=1e-3, atol=1e-4)
    for rank in ranks:
        assert rank[2].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(rank[2][name], value, rtol=1e-4, atol=1e-5)


KINDS = [{"affine": False}, {"track_running_stats": False}, {"momentum": None}]


def network_of(options: dict) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(2, **options))


def with_synchronised_norms_of_each_kind(world, images):
    outputs, part = [], slice(world.rank * 2, world.rank * 2 + 2)
    for options in KINDS:
        network = copy.deepcopy(synchronise_batch_norm(network_of(options), world))  # as an average of weights is made
        shown = [network(batch[part]) for batch in images]
        outputs.append((torch.stack(shown).detach(), network.state_dict(), network.eval()(images[0]).detach()))
    # forward mode over ranks is refused, not left out in silence
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        sum_over_ranks(forward_ad.make_dual(torch.ones(2), torch.ones(2)), world.group)
    return outputs


def test_batch_norms_of_every_kind_are_synchronised():
    images = torch.randn(3, 4, 2, 4, 4)
    ranks = run_on_ranks(with_synchronised_norms_of_each_kind, 2, images)
    for kind, options in enumerate(KINDS):
        alone = network_of(options)
        expected = torch.stack([alone(batch) for batch in images]).detach()
        found = torch.cat([rank[kind][0] for rank in ranks], dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for _, state, later in (rank[kind] for rank in ranks):
            torch.testing.assert_close(state, alone.state_dict(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(later, alone.eval()(images[0]).detach(), rtol=1e-4, atol=1e-5)


def raise_the_flag_on_the_last_rank(world):
    flag, answers = SharedFlag(world), []
    for step in range(3):
        flag.ask(15 if step == 1 and world.rank == world.size - 1 else 0)
        answers.append(flag.answer())
    return answers


def test_a_flag_raised_on_one_rank_is_seen_on_all():
    assert run_on_ranks(raise_the_flag_on_the_last_rank, 3) == [[0, 15, 0]] * 3


def disagree(world):
    require_agreement(7, world, "luck")
    try:
        require_agreement(world.rank, world, "the step")
    except UserError as error:
        return str(error)
    return None


def test_ranks_that_differ_all_say_so():
    assert all("ranks differ in the step: [0, 1]" in message for message in run_on_ranks(disagree, 2))


def fail_on_rank(world, failing):
    for rank in (None, failing):  # a body without an error is left as it is
        try:
            with shared_errors(world):
                if world.rank == rank:
                    raise UserError("the disk is full")
        except UserError as error:
            return str(error)
    return None


@pytest.mark.parametrize(("rank", "message"), [(0, "the disk is full"), (1, "the disk is full (on rank 1)")])
def test_what_one_rank_meets_is_raised_on_all(rank, message):
    assert run_on_ranks(fail_on_rank, 2, rank) == [message] * 2


@pytest.mark.parametrize(
    ("rank", "local_rank", "error", "printed"),
    [
        (0, 0, UserError("wrong"), "error: wrong\n"),
        (1, 1, UserError("wrong"), ""),
        (1, 1, RankError("wrong"), "error: rank 1: wrong\n"),
        (8, 0, UserError("wrong"), "error: rank 8: wrong\n"),  # another machine, with files of its own
    ],
)
def test_an_error_is_printed_once_unless_a_rank_met_it_alone(monkeypatch, capsys, rank, local_rank, error, printed):
    for name, value in {"RANK": rank, "WORLD_SIZE": 16, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))

    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run_tool(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == printed


def test_a_rank_without_a_gpu_met_that_alone(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RankError, match="local rank 1 has no GPU"):
        start_world("auto").__enter__()
    with pytest.raises(RankError, match="no image decodes"), on_this_rank("making a batch"):
        raise UserError("no image decodes")


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistBackendError("NCCL error in: work.cpp:1: unhandled system error"),
        torch.distributed.DistNetworkError("failed to recv, got 0 bytes"),
        torch.distributed.DistStoreError("wait timeout after 4000ms"),
        RuntimeError(f"{GLOO}pair.cc:534] Connection closed by peer [127.0.0.1]:1234"),
        RuntimeError("Operation timed out!"),
        RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete"),
    ],
)
def test_a_rank_that_is_gone_is_told_from_what_collectives_raise(monkeypatch, error):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    with pytest.raises(RankError, match=r"^another rank is gone or did not answer while making step 3: "):
        with lost_ranks("making step 3"):
            raise error


@pytest.mark.parametrize(
    "text",
    [
        "loading data: timeout",
        "my loss: the request to the teacher timed out",
        "NCCL is not wanted here",
        f"{GLOO}pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4",
    ],
)
def test_a_defect_keeps_its_traceback_among_ranks(monkeypatch, text):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match=re.escape(text)), lost_ranks("making step 3"):
        raise RuntimeError(text)


def test_a_device_that_is_none_of_ours_is_told():
    with pytest.raises(UserError, match=r"^device = 'tpu': must be one of auto, cuda, cpu"):
        start_world("tpu").__enter__()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_one_clear_line():
    with pytest.raises(UserError, match=r"^device cuda: torch sees no GPU"):
        start_world("cuda").__enter__()
    with start_world("auto") as world:
        assert world.device.type == "cpu"
