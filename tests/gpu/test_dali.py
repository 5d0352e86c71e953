"""What only a GPU can show, from decoding on: the same batches and training as on the CPU."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.decode import Encoded, build_decoder
from fastfgssl.data.presets import PRESETS
from fastfgssl.data.stream import whole_archive
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.pretrained import load_pretrained
from fastfgssl.objectives import build_objective
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.distributed import start_world
from fastfgssl.training.checkpoint import list_checkpoints
from fastfgssl.training.step import TrainingStep
from helpers.damage import damage_sample
from helpers.gpu import DEVICE_ID, GPU, never_waits, rehearsed
from helpers.images import encode
from helpers.loader import BATCH, loader, spec, tensors
from helpers.runs import losses

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", rehearsed([*PRESETS]))
def test_batches_are_those_of_the_cpu(archive_path, name):
    on_gpu = loader(archive_path, device_id=DEVICE_ID, stop=3, preset=PRESETS[name])
    on_cpu = loader(archive_path, stop=3, preset=PRESETS[name])
    for a, b in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        for x, y in zip(tensors(a), tensors(b), strict=True):
            assert x.device.type == GPU.type
            assert x.shape == (BATCH, 3, 32, 32)
            assert x.is_contiguous(memory_format=torch.channels_last)
            # decoders and resampling differ by a grey level or two; solarise turns some of them over
            assert (x.cpu() - y).abs().mean() < 0.1


def test_chroma_is_upsampled_as_on_the_cpu():
    """Colours of half the resolution, which a decoder of a GPU repeats unless it is told to interpolate."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :33], image[:, 33:] = (200, 30, 40), (30, 60, 200)
    data = encode(Image.fromarray(image), "JPEG", quality=95, subsampling="4:2:0")
    truth, repeated = (simplejpeg.decode_jpeg(data, fastupsample=fast) for fast in (False, True))
    decoder = build_decoder(lambda: Encoded([np.frombuffer(data, np.uint8)]), spec(device_id=DEVICE_ID, batch_size=1))
    decoded = np.asarray(decoder.run()[0].as_cpu().at(0))
    error, error_of_repeating = (
        np.abs(each[:, 30:36] - truth[:, 30:36].astype(float)).mean() for each in (decoded, repeated)
    )
    assert error < 2 < 5 < error_of_repeating


@pytest.mark.parametrize("half", [False, True])
def test_a_gpu_stream_can_be_had_from_any_step(archive_path, half):
    whole = list(loader(archive_path, device_id=DEVICE_ID, half=half, stop=5))
    rest = list(loader(archive_path, device_id=DEVICE_ID, half=half, start=3, stop=5))
    for a, b in zip(whole[3:], rest, strict=True):
        for x, y in zip(tensors(a), tensors(b), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("schedule", "precision", "optimizer", "accumulate"),
    rehearsed(
        [("progressive", "bfloat16", "sgd", 1), ("joint", "float16", "lars", 2), ("joint", "float32", "adamw", 1)], 2
    ),
)
def test_batches_and_steps_never_wait_for_the_gpu(
    make_config, archive_path, precision, schedule, optimizer, accumulate
):
    config = make_config(
        train__device=GPU.type,
        train__precision=precision,
        train__schedule=schedule,
        train__accumulate=accumulate,
        loss__cache=accumulate > 1,
        optim__name=optimizer,
        optim__lr=1e-3,
    )
    batches = loader(archive_path, device_id=DEVICE_ID, half="16" in precision, stop=6)
    with start_world(GPU.type) as world:
        step = TrainingStep(build_objective(config, world), config, world)
        for _ in range(3):  # sets up memory, the optimiser's state, and what libraries choose by trying
            step(next(batches))
        with never_waits():
            values = [step(batch) for batch in batches]
    assert len(values) == 3
    assert all(logs[name].isfinite() for logs in values for name in step.objective.weights)


@pytest.mark.parametrize("schedule", ["progressive", "joint"])
@pytest.mark.parametrize("precision", rehearsed(["float32", "bfloat16", "float16"]))
def test_training_runs_and_learns(make_config, precision, schedule):
    config = make_config(
        train__device=GPU.type,
        train__precision=precision,
        train__schedule=schedule,
        train__steps=40,
        optim__name="adamw",
        optim__lr=2e-3,
    )
    assert pretrain(config)[:2] == (40, None)
    records = losses(config.output)
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    # and it goes on
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=42))
    assert pretrain(longer)[:2] == (42, None)


def test_a_bad_file_in_mid_run_costs_itself_alone(make_config, archive_path, tmp_path):
    archive = Archive.open(shutil.copytree(archive_path, tmp_path / "archive"))
    config = make_config(data__path=str(archive.path), train__device=GPU.type, train__steps=4)
    bad = int(whole_archive(config, archive).slots(24, 36).ids[5])  # of the third step
    damage_sample(archive, bad)
    assert pretrain(config)[:2] == (4, None)
    _, *listed = (Path(config.output) / "quarantine.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in listed] == [bad]


def test_the_first_loss_is_that_of_the_cpu(make_config, tmp_path):
    settings = {"train__steps": 1, "train__schedule": "joint"}
    first = {}
    for name, device in (("cpu", "cpu"), ("gpu", GPU.type)):
        config = make_config(output=str(tmp_path / name), train__device=device, **settings)
        pretrain(config)
        first[name] = losses(config.output)[0]["loss"]
    assert first["gpu"] == pytest.approx(first["cpu"], rel=0.05)


def test_a_checkpoint_of_the_gpu_is_evaluated_there(make_config, archive_path):
    config = make_config(train__device=GPU.type, train__steps=2)
    pretrain(config)
    model, config, step, _ = load_pretrained(list_checkpoints(Path(config.output) / "checkpoints")[-1])
    ids, features = FeatureExtractor(model.to(GPU), config, Archive.open(archive_path), GPU, 16).plain(np.arange(20))
    assert step == 2
    assert len(ids) == len(features["all"]) == 20
