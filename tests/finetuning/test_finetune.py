"""Fine-tuning: from labels and a start, resumed, on one and two ranks, validated, ended early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.evaluation.checkpoint import evaluate
from fastfgssl.evaluation.split import groups_of
from fastfgssl.evaluation.training_samples import training_samples
from fastfgssl.evaluation.validation import Validation
from fastfgssl.finetuning import finetune
from fastfgssl.objectives.base import Objective
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.hooks import Hook, Run
from fastfgssl.training.sinks import read_metrics
from helpers.ranks import run_on_ranks

OBJECTIVES = ("supervised.progressive", "supervised.joint", "supervised.plain")


@pytest.fixture
def labels_config(make_config, tmp_path):
    def make(output: str, **changes):
        settings = {
            "objective": "supervised.joint",
            "optim__name": "adamw",
            "optim__lr": 1e-2,
            "train__steps": 6,
            "evaluate__every": 2,
        }
        return make_config(output=str(tmp_path / output), **settings | changes)

    return make


class StopAt:
    """Asks for an end before its `step`-th step is made."""

    def __init__(self, step: int) -> None:
        self._calls, self._step = 0, step

    def __call__(self) -> int | None:
        self._calls += 1
        return 15 if self._calls == self._step else None


class SeenIds(Hook):
    """Collects the samples of every batch."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []

    def __call__(self, moment):
        if moment.step:
            self.ids.append(moment.batch.ids)


def last_state(config) -> dict:
    return load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])


def validated(config) -> list[float]:
    return [record["val_macro_auroc"] for record in read_metrics(Path(config.output)) if "val_macro_auroc" in record]


def require_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_stopped_run_goes_on_bit_for_bit(labels_config, objective):
    settings = {
        "objective": objective,
        "optim__ema_decay": 0.9,
        "optim__clip_norm": 1.0,
        "optim__layer_decay": 0.7,
        "optim__freeze_epochs": 0.03,
        "supervised__balance": "sampling",
    }
    whole, stopped = (labels_config(name, **settings) for name in ("whole", "stopped"))
    finetune(whole)
    assert finetune(stopped, stop_signal=StopAt(3))[:2] == (3, 15)
    assert finetune(stopped)[:2] == (6, None)
    first, second = last_state(whole), last_state(stopped)
    require_equal(first["model"], second["model"])
    require_equal(first["objective"]["average"], second["objective"]["average"])
    best = [load_checkpoint(Path(config.output) / "checkpoints" / "best.pt") for config in (whole, stopped)]
    assert best[0]["step"] == best[1]["step"]
    require_equal(best[0]["model"], best[1]["model"])
    scores = [
        [record["val_macro_auroc"] for record in read_metrics(Path(c.output)) if "val_macro_auroc" in record]
        for c in (whole, stopped)
    ]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 3


def train_on_rank(world, configs) -> list[dict]:
    """Several trainings of one process after another."""
    for config in configs:
        finetune(config)
    return [last_state(config)["model"] for config in configs]


def test_two_ranks_train_as_one(labels_config):
    settings = {"supervised__balance": "weights", "train__steps": 2, "train__batch_size": 24, "optim__name": "sgd"}
    settings |= {"optim__lr": 1e-3, "evaluate__every": 9}
    alone = [labels_config(f"alone {objective}", objective=objective, **settings) for objective in OBJECTIVES]
    together = [
        labels_config(f"together {one.objective}", objective=one.objective, **settings, train__batch_norm="sync")
        for one in alone
    ]
    of_ranks = run_on_ranks(train_on_rank, 2, together, join=False)
    for number, config in enumerate(alone):
        finetune(config)
        before = load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[0])["model"]
        first, second = (states[number] for states in of_ranks)
        changed = distance = 0.0
        for name, value in last_state(config)["model"].items():
            if "running" not in name and "num_batches" not in name:
                assert torch.equal(first[name], second[name]), name
                changed += (value - before[name]).square().sum().item()
                distance += (first[name] - value).square().sum().item()
        assert changed > 0
        assert distance < 1e-3 * changed, (config.objective, distance / changed)


def test_only_training_images_are_shown_also_where_some_are_damaged(labels_config):
    config, seen = labels_config("run", train__steps=20), SeenIds()
    archive = Archive.open(config.data.path)
    finetune(config, hooks=[seen])
    shown = np.unique(np.concatenate(seen.ids))
    split = archive.columns(shown, ("split",))["split"]
    assert set(split) == {"fit"}


def test_pretraining_goes_on_in_the_heads(make_config, labels_config, tmp_path):
    pretrained = pretrain(make_config(output=str(tmp_path / "pretrained"), train__steps=2)).checkpoint
    config = labels_config("run", model__weights=str(pretrained), train__steps=1, optim__lr=1e-9)
    finetune(config)
    start = load_checkpoint(pretrained)["model"]
    state = load_checkpoint(Path(config.output) / "checkpoints" / "step_000000000.pt")["model"]
    assert {name for name in state if name not in start} == {
        f"classifiers.{head}.{part}" for head in range(4) for part in ("weight", "bias")
    }
    require_equal(start, {name: state[name] for name in start})


def test_the_backbone_stays_frozen_and_then_moves(labels_config):
    # 63 training images in batches of 12: an epoch is 5.25 steps
    config = labels_config("run", optim__freeze_epochs=0.6, train__steps=4, train__checkpoint_every=1)
    finetune(replace(config, train=replace(config.train, keep_checkpoints=9)))
    states = [load_checkpoint(path)["model"] for path in list_checkpoints(Path(config.output) / "checkpoints")]
    weights = [state["backbone.layer1.0.conv1.weight"] for state in states]
    assert torch.equal(weights[0], weights[3])
    assert not torch.equal(weights[3], weights[4])
    assert not torch.equal(states[0]["classifiers.3.weight"], states[1]["classifiers.3.weight"])


def test_patience_ends_a_run_that_no_longer_improves(labels_config):
    # a rate at which nothing changes: no score is better than the first
    config = labels_config("run", train__steps=30, optim__lr=1e-12, evaluate__every=1, evaluate__patience=3)
    assert finetune(config)[:2] == (4, None)
    assert finetune(config)[:2] == (4, None)  # again: it is complete
    assert len(list_checkpoints(Path(config.output) / "checkpoints")) == 2


def test_layers_have_rates_of_their_own(labels_config):
    config = labels_config("run", optim__layer_decay=0.5, optim__backbone_lr=8e-3, train__steps=1)
    finetune(config)
    groups = {group["name"]: group["peak_lr"] for group in last_state(config)["optimizer"]["param_groups"]}
    assert groups["heads_weights"] == 1e-2
    assert groups["backbone_weights"] == 4e-3  # layer4
    assert groups["backbone_stage_0_weights"] == 8e-3 / 2**5


def test_folds_share_no_group_and_cover_everything(labels_config):
    config = labels_config("run", data__folds=3)
    archive = Archive.open(config.data.path)
    validated = []
    for fold in range(3):
        samples = training_samples(archive, replace(config.data, fold=fold), seed=0)
        assert not np.isin(groups_of(archive, samples.validation), groups_of(archive, samples.train)).any()
        validated.append(samples.validation)
    names = archive.columns(np.arange(archive.num_samples), ("split",))["split"]
    assert sorted(np.concatenate(validated)) == np.flatnonzero(names != "test").tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "fgssl"}, "fine-tuning takes supervised.progressive"),
        ({"data__folds": 50}, "too few for data.folds"),
        ({"data__label_fraction": 0.001}, "a label fraction of 0.001 leaves class"),
        ({"supervised__classes": ["a", "b"]}, "supervised.classes = a, b"),
        ({"evaluate__metric": "macro_auroc", "evaluate__metric_classes": ["zebra"]}, "is of class 'zebra'"),
        ({"loss__cache": True, "train__accumulate": 2}, "loss.cache: of no use"),
        ({"model__weights": "missing.pt"}, "missing.pt: no such file"),
        ({"train__batch_size": 4}, "supervised.joint shows each of 3 heads a part"),
    ],
)
def test_bad_input_is_one_line(labels_config, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        finetune(labels_config("run", **changes))
    assert "\n" not in str(caught.value)
    assert not Path(labels_config("run").output).exists()


def test_a_class_that_no_image_validates_is_told(labels_config, caplog):
    config = labels_config("run")
    archive = Archive.open(config.data.path)
    samples = training_samples(archive, config.data, seed=0)
    of_class = samples.labels[samples.validation] == 1
    alone = World.alone(torch.device("cpu"))
    number = archive.num_samples
    run = Run(config=config, world=alone, objective=Objective(), num_samples=number, is_new=True, start=0, steps=6)
    for validation in (samples.validation, samples.validation[~of_class]):
        Validation(archive, samples._replace(validation=validation)).begin(run)
    told = f"no image that validates is of class {archive.classes[1]}: scores are of the other classes"
    assert caplog.messages == [told]


def test_pretraining_takes_nothing_of_fine_tuning(make_config, labels_config):
    finished = labels_config("run", supervised__classes=["a", "b"], supervised__class_counts=[1, 2])
    for config in (labels_config("run"), finished):  # the latter as a run's config.yaml has it
        with pytest.raises(UserError, match="train it by `fastfgssl finetune`"):
            pretrain(config)
    for changes in ({"data__folds": 3}, {"supervised__mix": "mixup"}, {"evaluate__patience": 2}):
        with pytest.raises(UserError, match="does nothing in pretraining"):
            pretrain(make_config(**changes))


def test_a_fold_is_scored_on_what_it_did_not_see(labels_config):
    part = {"data__folds": 3, "data__fold": 1, "data__label_fraction": 0.7}
    config = labels_config("run", **part, train__steps=1, evaluate__every=9)
    checkpoint = finetune(config).checkpoint
    archive = Archive.open(config.data.path)
    samples = training_samples(archive, config.data, seed=0)
    report = evaluate(checkpoint, config.data.path, "finetuned")
    assert report.split == "fold 1 of 3"
    assert report.predictions.ids.tolist() == samples.validation.tolist()
    assert (report.fit_samples, report.overlap.groups) == (len(samples.train), 0)
    assert report.label_fraction == 0.7
    assert list(report.results) == ["head 0", "head 1", "head 2", "all", "sum", "colour"]
    with pytest.raises(UserError, match="the network was fine-tuned on"):
        evaluate(checkpoint, config.data.path, "finetuned", split="val")


def test_a_damaged_best_checkpoint_ends_no_run(labels_config):
    config = labels_config("run", train__steps=4)
    finetune(config, stop_signal=StopAt(3))
    best = Path(config.output) / "checkpoints" / "best.pt"
    best.write_bytes(best.read_bytes()[:1000])
    finetune(config)
    assert load_checkpoint(best)["step"] == 4
