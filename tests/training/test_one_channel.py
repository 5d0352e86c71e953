"""A run on one channel from end to end: pretraining, resumed, scored, fine-tuned, taken home."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastfgssl.config.files import load_config
from fastfgssl.evaluation.checkpoint import evaluate
from fastfgssl.evaluation.pretrained import load
from fastfgssl.finetuning import finetune
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.sinks import read_metrics
from helpers.bucket import put_folder
from helpers.gray import gray_archive
from helpers.ranks import run_on_ranks
from helpers.runs import losses, trained_change


@pytest.fixture(scope="module")
def gray(phantom_folder, tmp_path_factory) -> Path:
    return gray_archive(tmp_path_factory.mktemp("gray"), phantom_folder, 48).path


@pytest.fixture
def gray_config(make_config, gray, tmp_path):
    def make(output: str, **changes):
        settings = {"data__path": str(gray), "data__views": "grayscale", "model__in_channels": 1}
        return make_config(output=str(tmp_path / output), **settings | changes)

    return make


def newest(config) -> Path:
    return list_checkpoints(Path(config.output) / "checkpoints")[-1]


def stem_of(config) -> torch.Tensor:
    return load_checkpoint(newest(config))["model"]["backbone.conv1.weight"]


class StopAfter:
    """Asks for an end after `steps` steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def __call__(self) -> int | None:
        self._left -= 1
        return 15 if self._left < 0 else None


def test_a_run_is_made_resumed_scored_and_fine_tuned(gray_config, gray):
    whole, stopped = (gray_config(name, evaluate__every=2, evaluate__images=24) for name in ("whole", "stopped"))
    assert whole.data.mean == pytest.approx((0.449,))  # the average of ImageNet's, which is the default
    pretrain(whole)
    assert load_config(Path(whole.output) / "config.yaml") == whole
    assert stem_of(whole).shape == (8, 1, 7, 7)
    assert any("score_matching_backbone" in record for record in read_metrics(Path(whole.output)))
    with Image.open(Path(whole.output) / "views.png") as picture:
        assert picture.width > 5 * 96
    pretrain(stopped, stop_signal=StopAfter(2))
    pretrain(stopped)
    assert losses(stopped.output) == losses(whole.output)
    assert torch.equal(stem_of(stopped), stem_of(whole))

    report = evaluate(newest(whole), gray, "matching", device="cpu", batch_size=16)
    assert report.results["backbone"]["top1"] >= 0
    backbone = load(newest(whole))
    image = backbone.transform(Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(40, 48)))
    assert backbone(image[None]).shape == (1, backbone.num_features)

    tuning = {"objective": "supervised.joint", "model__weights": str(newest(whole)), "data__views": "radiograph"}
    tuned = gray_config("tuned", **tuning, supervised__mix="cutmix", train__steps=2)
    finetune(tuned)
    assert load(newest(tuned))(image[None]).shape == (1, 2)
    # and on with three channels, each with a third of the weight
    of_three = {"data__views": "radiograph", "model__in_channels": 3, "optim__lr": 1e-12, "train__steps": 1}
    tuned = gray_config("tuned in colour", **tuning | of_three)
    finetune(tuned)
    torch.testing.assert_close(stem_of(tuned), (stem_of(whole) / 3).expand(-1, 3, -1, -1), rtol=0, atol=1e-6)


def test_a_run_does_not_go_on_with_another_number_of_channels(gray_config):
    pretrain(gray_config("run", train__steps=1))
    with pytest.raises(UserError, match=r"holds a run with model\.in_channels = 1, this one has 3; data\.mean = "):
        pretrain(gray_config("run", train__steps=1, model__in_channels=3))


def train_on_rank(world, configs) -> None:
    for train, config in zip((pretrain, finetune), configs, strict=True):
        train(config)


def test_two_ranks_train_from_a_bucket_as_one_does_from_a_folder(gray_config, gray, bucket):
    """Pretraining, and fine-tuning with mixed images."""
    put_folder(bucket, gray, "gray")
    largest = max(path.stat().st_size for path in gray.glob("shards/*.tar"))
    of_bucket = {"data__path": "s3://hospital/gray", "data__cache_gib": 5 * largest / 2**30}
    settings = {"train__steps": 1, "train__batch_norm": "sync", "optim__lr": 1e-4}
    tuning = {"objective": "supervised.plain", "data__views": "radiograph", "supervised__mix": "mixup"}

    def both(name: str, **changes: object) -> list:
        cache = {"data__cache": f"{gray.parent}/cache"} if changes else {}
        return [gray_config(f"{name} {n}", **settings | more | changes | cache) for n, more in enumerate(({}, tuning))]

    alone, together = both("alone"), both("together", **of_bucket)
    train_on_rank(None, alone)
    run_on_ranks(train_on_rank, 2, together, join=False)
    for one, of_ranks in zip(alone, together, strict=True):
        assert losses(of_ranks.output)[0] == pytest.approx(losses(one.output)[0], rel=1e-3)
        change, expected = trained_change(of_ranks.output), trained_change(one.output)
        assert (change - expected).norm() < 0.02 * expected.norm()
