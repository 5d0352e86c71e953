"""What only a GPU can show, and torch alone suffices for: loss, jigsaw, fan-out and whole steps. No DALI on its way."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from fastfgssl.benchmarks.anatomy import anatomy
from fastfgssl.benchmarks.trace import PARTS
from fastfgssl.config.schema import STAGES, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from fastfgssl.data.batch import Batch
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import start_world
from fastfgssl.training.resume import find_state
from fastfgssl.training.sinks import make_sinks, read_metrics
from fastfgssl.training.step import TrainingStep
from fastfgssl.training.trainer import fit
from helpers.embeddings import ALGORITHMS, FORMS, compute, embeddings, loss_and_gradients
from helpers.gpu import GPU, never_waits, on_hardware, rehearsed
from helpers.loss_accuracy import (
    before_the_standardisation,
    hard_embeddings,
    in_float64,
    plain_direct,
    require_as_exact_as_plain,
)

pytestmark = pytest.mark.gpu
MODEL = ModelConfig(backbone="resnet18", weights="none", width=0.125, grids=(8, 4, 2), embedding_dim=24, block_dim=16)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", rehearsed([torch.float32, torch.float16, torch.bfloat16, torch.float64], 2))
@pytest.mark.parametrize(
    ("algorithm", "N", "D"),
    rehearsed(
        [
            ("gram", 2, 17),
            ("direct", 200, 33),
            ("direct", 2, 1),
            ("gram", 63, 300),
            ("gram", 256, 4096),
            ("direct", 500, 512),
        ],
        3,
    ),
)
def test_the_loss_is_as_exact_as_plain_pytorch_on_the_cpu(algorithm, N, D, dtype, precision, form):
    z1, z2 = embeddings(N, D, dtype)
    on_gpu = [z.detach().to(GPU).requires_grad_() for z in (z1, z2)]
    got = loss_and_gradients(*on_gpu, form=form, algorithm=algorithm, precision=precision)
    rounded = precision == "bfloat16"
    before = before_the_standardisation(z1, z2, form)
    plain, truth = plain_direct(z1, z2, form, rounded), in_float64(z1, z2, form)
    # the error of a rounded loss, one number, is now and then far smaller than is usual: plain PyTorch's too
    units = 4e-6 if rounded else 4e-7
    require_as_exact_as_plain([value.cpu() for value in got], plain, truth, before, units=units)


@pytest.mark.parametrize("case", ["dead features", "nearly collinear", "1e-4", "1e4"])
@pytest.mark.parametrize("algorithm", ["direct", "gram"])
def test_the_loss_of_hard_embeddings(algorithm, case):
    z1, z2 = hard_embeddings(case)
    got = loss_and_gradients(*(z.detach().to(GPU).requires_grad_() for z in (z1, z2)), algorithm=algorithm)
    plain, truth = plain_direct(z1, z2, "barlow"), in_float64(z1, z2, "barlow")
    before = before_the_standardisation(z1, z2, "barlow")
    require_as_exact_as_plain([value.cpu() for value in got], plain, truth, before)


@on_hardware
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_loss_is_the_same_each_time_and_in_a_cuda_graph(algorithm):
    z1, z2 = (z.detach().to(GPU) for z in embeddings(200, 512))
    first, again = (compute(z1, z2, algorithm=algorithm) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute(z1, z2, algorithm=algorithm)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        captured = compute(z1, z2, algorithm=algorithm)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(first, captured, strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()


@on_hardware
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("N", "D"), [(256, 8192), (2048, 8192), (4096, 2048)])
def test_the_loss_takes_little_memory_and_never_waits(N, D, precision):
    z1, z2 = (torch.randn(N, D, device=GPU, requires_grad=True) for _ in range(2))
    loss_and_gradients(z1, z2, precision=precision)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with never_waits():
        loss_and_gradients(z1, z2, precision=precision)
    numbers = (torch.cuda.max_memory_allocated() - before) / 4
    # 3 (N^2 + N D), and slabs of C, which a float32 result is made of again in bfloat16
    assert numbers < 3 * (N * N + N * D) + (3 * 1024 * D if 4 * N > 3 * D else 0)


def make_batch(*, half: bool, seed: int = 0, device: torch.device = GPU) -> Batch:
    """Two views that have an image in common, as the loader hands them over."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(12, 3, 32, 32, generator=generator)
    anchor, view, *puzzles = (
        (common + 0.3 * torch.randn(12, 3, 32, 32, generator=generator))
        .to(device, torch.float16 if half else torch.float32)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(5)
    )
    return Batch(anchor, view, tuple(puzzles), np.arange(12))


def make_step(world, *, loss: LossConfig | None = None, optim: OptimConfig | None = None, **train) -> TrainingStep:
    config = Config(
        data=DataConfig(path="none", image_size=32),
        model=MODEL,
        train=TrainConfig(steps=1, batch_size=12, **train),
        loss=loss or LossConfig(),
        optim=optim or OptimConfig(name="sgd", lr=1e-3),
    )
    torch.manual_seed(0)
    return TrainingStep(build_objective(config, world), config, world)


def losses_of(logs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[4]: of the heads."""
    return torch.stack([logs[f"loss_{stage}"] for stage in STAGES])


@pytest.mark.parametrize("schedule", ["progressive", "joint"])
@pytest.mark.parametrize("precision", rehearsed(["float32", "float16", "bfloat16", "tf32"], 2))
@pytest.mark.parametrize("optimizer", rehearsed(["lars", "sgd", "adamw"]))
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_never_wait_for_the_gpu(precision, schedule, optimizer, accumulate):
    batch = make_batch(half="16" in precision)
    with start_world(GPU.type) as world:
        step = make_step(
            world,
            loss=LossConfig(cache=accumulate > 1),
            optim=OptimConfig(name=optimizer, lr=1e-3),
            schedule=schedule,
            precision=precision,
            accumulate=accumulate,
        )
        for _ in range(3):  # sets up memory, the optimiser's state, and what libraries choose by trying
            step(batch)
        with never_waits():
            values = [step(batch) for _ in range(3)]
    assert all(logs[name].isfinite() for logs in values for name in step.objective.weights)


@pytest.mark.parametrize("schedule", ["progressive", "joint"])
@pytest.mark.parametrize("precision", rehearsed(["float32", "bfloat16", "float16"]))
def test_steps_learn(precision, schedule):
    batch = make_batch(half="16" in precision)
    with start_world(GPU.type) as world:
        step = make_step(world, optim=OptimConfig(name="adamw", lr=2e-3), schedule=schedule, precision=precision)
        losses = [losses_of(step(batch)) for _ in range(40)]
    assert (losses[-1] < 0.8 * losses[0]).all()


@pytest.mark.parametrize("schedule", ["progressive", "joint"])
def test_the_first_losses_are_those_of_the_cpu(schedule):
    first = {}
    for device in ("cpu", GPU.type):
        with start_world(device) as world:
            # updates would amplify what differs: weights stand still
            still = OptimConfig(name="sgd", lr=1e-12)
            step = make_step(world, optim=still, schedule=schedule, precision="float32")
            first[device] = losses_of(step(make_batch(half=False, device=world.device))).cpu()
    torch.testing.assert_close(first[GPU.type], first["cpu"], rtol=0.02, atol=0)


@pytest.mark.parametrize("optimizer", rehearsed(["sgd", "lars", "adamw"]))
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_state_that_was_saved_goes_on(precision, optimizer, tmp_path):
    batches = [make_batch(half="16" in precision, seed=seed) for seed in range(4)]
    with start_world(GPU.type) as world:
        # small: what libraries compute in another order each time would be amplified
        options = {"precision": precision, "optim": OptimConfig(name=optimizer, lr=1e-6)}
        step = make_step(world, **options)
        for batch in batches[:2]:
            step(batch)
        torch.save(step.state_dict(), tmp_path / "state.pt")
        resumed = make_step(world, **options)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True))
        for own, other in zip(tree_leaves(resumed.state_dict()), tree_leaves(step.state_dict()), strict=True):
            assert torch.equal(own, other) if isinstance(own, torch.Tensor) else own == other
        for batch in batches[2:]:
            expected, got = step(batch), resumed(batch)
    torch.testing.assert_close(losses_of(got), losses_of(expected), rtol=0.01, atol=0)


class Synthetic:
    """Data for `fit` without an archive."""

    num_samples, fingerprint = 48, "synthetic"

    @contextmanager
    def batches(self, start, stop):
        yield (make_batch(half=True, seed=step) for step in range(start, stop))

    def verdict(self):
        return None


@pytest.mark.parametrize("precision", rehearsed(["float16", "bfloat16"]))
def test_the_loop_goes_on_from_its_checkpoint(precision, tmp_path):
    """As far as the GPU computes alike each time: what runs on differs in the last places."""
    losses = {}
    for name, lengths in (("whole", [6]), ("resumed", [3, 6])):
        for steps in lengths:
            config = Config(
                output=str(tmp_path / name),
                data=DataConfig(path="none", image_size=32),
                model=MODEL,
                train=TrainConfig(steps=6, batch_size=12, precision=precision, log_every=1),
                optim=OptimConfig(name="sgd", lr=1e-6),
            )
            stop = iter([None] * (steps - 1) + [15] * 9)
            with start_world(GPU.type) as world:
                state = find_state(config, Synthetic(), world)
                torch.manual_seed(0)
                objective = build_objective(config, world, fresh=state is None)
                data, sinks = Synthetic(), make_sinks(())
                fit(config, world, objective, data, sinks, state=state, stop_signal=stop.__next__)
        losses[name] = [record["loss"] for record in read_metrics(tmp_path / name)]
    assert len(losses["whole"]) == len(losses["resumed"]) == 6
    assert losses["resumed"] == pytest.approx(losses["whole"], rel=0.01)


@on_hardware  # on a CPU it takes minutes, and tests/training/test_pretrain.py has it in float32
@pytest.mark.parametrize("schedule", ["progressive", "joint"])
def test_a_compiled_step_is_the_same_step(schedule):
    torch._dynamo.reset()
    batch = make_batch(half=True)
    losses, gradients = [], []
    with start_world(GPU.type) as world:
        for precision, compile in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
            # updates would amplify what differs: weights stand still, and the first velocity is the gradient
            still = OptimConfig(name="sgd", lr=1e-12, weight_decay=0.0)
            step = make_step(world, optim=still, schedule=schedule, precision=precision, compile=compile)
            losses.append(losses_of(step(batch)))
            states = step.state_dict()["optimizer"]["state"].values()
            gradients.append(torch.cat([state["momentum_buffer"].flatten() for state in states]))
    torch.testing.assert_close(losses[2], losses[1], rtol=0.05, atol=0)
    exact, eager, compiled = gradients
    assert (compiled - exact).norm() < 1.5 * (eager - exact).norm()


@pytest.mark.parametrize("precision", rehearsed(["float32", "bfloat16"]))
def test_the_parts_of_a_step_are_found_in_its_trace(precision):
    with start_world(GPU.type) as world:
        found = anatomy(make_step(world, precision=precision), make_batch(half="16" in precision), precision, GPU)
    assert all(found[f"seconds_{part}"] > 0 for part in PARTS)
    assert found["peak_memory_of_a_step"] > 0
    assert found["operations"] > 0
