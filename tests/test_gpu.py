"""What only a GPU can show: the same batches, losses and training as on the CPU. Run by `make gpu`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from embeddings import ALGORITHMS, FORMS, compute, embeddings, loss_and_gradients
from test_loader import BATCH, loader, tensors
from test_loss_accuracy import (
    before_the_standardisation,
    hard_embeddings,
    in_float64,
    plain_direct,
    require_as_exact_as_plain,
)
from test_pretrain import losses

from fastfgssl.benchmarks.anatomy import anatomy
from fastfgssl.benchmarks.trace import PARTS
from fastfgssl.checkpoint import list_checkpoints
from fastfgssl.data.presets import PRESETS
from fastfgssl.distributed import start_world
from fastfgssl.evaluation.features import FeatureExtractor, load_pretrained
from fastfgssl.models import build_model
from fastfgssl.pretrain import pretrain
from fastfgssl.training_step import TrainingStep

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("name", PRESETS)
def test_batches_are_those_of_the_cpu(archive_path, name):
    on_gpu = loader(archive_path, device_id=0, stop=3, preset=PRESETS[name])
    on_cpu = loader(archive_path, stop=3, preset=PRESETS[name])
    for a, b in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        for x, y in zip(tensors(a), tensors(b), strict=True):
            assert x.device == GPU
            assert x.shape == (BATCH, 3, 32, 32)
            assert x.is_contiguous(memory_format=torch.channels_last)
            # decoders and resampling differ by a grey level or two; solarise turns some of them over
            assert (x.cpu() - y).abs().mean() < 0.1


@pytest.mark.parametrize("half", [False, True])
def test_a_gpu_stream_can_be_had_from_any_step(archive_path, half):
    whole = list(loader(archive_path, device_id=0, half=half, stop=5))
    rest = list(loader(archive_path, device_id=0, half=half, start=3, stop=5))
    for a, b in zip(whole[3:], rest, strict=True):
        for x, y in zip(tensors(a), tensors(b), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("algorithm", "N", "D"),
    [
        ("gram", 2, 17),
        ("gram", 63, 300),
        ("gram", 256, 4096),
        ("direct", 2, 1),
        ("direct", 200, 33),
        ("direct", 500, 512),
    ],
)
def test_the_loss_is_as_exact_as_plain_pytorch_on_the_cpu(algorithm, N, D, dtype, precision, form):
    z1, z2 = embeddings(N, D, dtype)
    on_gpu = [z.detach().to(GPU).requires_grad_() for z in (z1, z2)]
    got = loss_and_gradients(*on_gpu, form=form, algorithm=algorithm, precision=precision)
    rounded = precision == "bfloat16"
    before = before_the_standardisation(z1, z2, form)
    plain, truth = plain_direct(z1, z2, form, rounded), in_float64(z1, z2, form)
    require_as_exact_as_plain([value.cpu() for value in got], plain, truth, before)


@pytest.mark.parametrize("case", ["dead features", "nearly collinear", "1e-4", "1e4"])
@pytest.mark.parametrize("algorithm", ["direct", "gram"])
def test_the_loss_of_hard_embeddings(algorithm, case):
    z1, z2 = hard_embeddings(case)
    got = loss_and_gradients(*(z.detach().to(GPU).requires_grad_() for z in (z1, z2)), algorithm=algorithm)
    plain, truth = plain_direct(z1, z2, "barlow"), in_float64(z1, z2, "barlow")
    before = before_the_standardisation(z1, z2, "barlow")
    require_as_exact_as_plain([value.cpu() for value in got], plain, truth, before)


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("N", "D"), [(256, 8192), (2048, 8192), (4096, 2048)])
def test_the_loss_takes_little_memory_and_never_waits(N, D, precision):
    z1, z2 = (torch.randn(N, D, device=GPU, requires_grad=True) for _ in range(2))
    loss_and_gradients(z1, z2, precision=precision)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_gradients(z1, z2, precision=precision)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    numbers = (torch.cuda.max_memory_allocated() - before) / 4
    # 3 (N^2 + N D), and slabs of C, which a float32 result is made of again in bfloat16
    assert numbers < 3 * (N * N + N * D) + (3 * 1024 * D if 4 * N > 3 * D else 0)


@pytest.mark.parametrize("schedule", ["progressive", "joint"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_and_steps_never_wait_for_the_gpu(
    make_config, archive_path, precision, schedule, optimizer, accumulate
):
    config = make_config(
        train__device="cuda",
        train__precision=precision,
        train__schedule=schedule,
        train__accumulate=accumulate,
        loss__cache=accumulate > 1,
        optim__name=optimizer,
        optim__lr=1e-3,
    )
    batches = loader(archive_path, device_id=0, half=precision != "float32", stop=6)
    with start_world("cuda") as world:
        step = TrainingStep(build_model(config.model), config, world)
        for _ in range(3):  # sets up memory, the optimiser's state, and what libraries choose by trying
            step(next(batches))
        torch.cuda.set_sync_debug_mode("error")
        try:
            values = [step(batch) for batch in batches]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(values) == 3
    assert all(loss.isfinite() for heads in values for loss, _ in heads.values())


def test_the_parts_of_a_step_are_found_in_its_trace(make_config, archive_path):
    config = make_config(train__device="cuda", train__precision="bfloat16")
    with start_world("cuda") as world:
        step = TrainingStep(build_model(config.model), config, world)
        batch = next(loader(archive_path, device_id=0, half=True, stop=1))
        found = anatomy(step, batch, "bfloat16", GPU)
    assert all(found[f"seconds_{part}"] > 0 for part in PARTS)
    assert found["peak_memory_of_a_step"] > 0
    assert found["operations"] > 0


@pytest.mark.parametrize("schedule", ["progressive", "joint"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_runs_and_learns(make_config, precision, schedule):
    config = make_config(
        train__device="cuda",
        train__precision=precision,
        train__schedule=schedule,
        train__steps=40,
        optim__name="adamw",
        optim__lr=2e-3,
    )
    assert pretrain(config) == (40, None)
    records = losses(config.output)
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    # and it goes on
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=42))
    assert pretrain(longer) == (42, None)


def test_the_first_loss_is_that_of_the_cpu(make_config, tmp_path):
    settings = {"train__steps": 1, "train__schedule": "joint"}
    first = {}
    for device in ("cpu", "cuda"):
        config = make_config(output=str(tmp_path / device), train__device=device, **settings)
        pretrain(config)
        first[device] = losses(config.output)[0]["loss"]
    assert first["cuda"] == pytest.approx(first["cpu"], rel=0.05)


def test_a_checkpoint_of_the_gpu_is_evaluated_there(make_config, archive_path):
    from fastfgssl.archive.manifest import Archive

    config = make_config(train__device="cuda", train__steps=2)
    pretrain(config)
    model, config, step = load_pretrained(list_checkpoints(Path(config.output) / "checkpoints")[-1])
    ids, features = FeatureExtractor(model, config, Archive.open(archive_path), GPU, 16).plain(np.arange(20))
    assert step == 2
    assert len(ids) == len(features["all"]) == 20
