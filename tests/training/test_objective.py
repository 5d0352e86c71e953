"""The proof of the seam: an objective of a test's own, trained by the unchanged loop, resumed, on one and two ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import fastfgssl
from fastfgssl.commands import evaluate
from fastfgssl.models import Network
from fastfgssl.models.backbone import build_backbone
from fastfgssl.objectives import build_objective, register
from fastfgssl.objectives.base import Needs, Objective, Output, Update, place_model
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.hooks import Hook, Moment
from fastfgssl.training.sinks import read_metrics
from helpers.command import run_here
from helpers.ranks import run_on_ranks

CLASSES = 7


class Classify(Update):
    """Cross-entropy of the puzzle view's class."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def embed(self, batch):
        return (self.model(batch.puzzle_view),)

    def compare(self, embeddings, batch, *, log):
        (logits,) = embeddings
        loss = functional.cross_entropy(logits, batch.labels)
        right = (logits.argmax(dim=1) == batch.labels).float().mean()
        return Output(loss, {"cross_entropy": loss.detach(), "accuracy": right})


class Labels(Objective):
    def __init__(self, config, world, network: nn.Module | None = None) -> None:
        self.model = place_model(network or small_network(), config, world)
        self.needs = Needs(anchor=False, view=True, labels=True)
        self.updates = [Classify(self.model)]
        self.weights = {"cross_entropy": 1.0}
        self.steps = 0

    def after_step(self, progress):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def small_network() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))
    network(torch.zeros(1, 3, 32, 32))
    return network


class Classifier(Network):
    """A network that can be scored."""

    def __init__(self, config) -> None:
        super().__init__()
        self.backbone = build_backbone(config.model)
        self.classify = nn.Linear(self.backbone.tap_channels[-1], CLASSES)

    def forward(self, images):
        return self.classify(self.features(images)["backbone"])


register("test_labels", lambda config, world, *, fresh: Labels(config, world))
register("test_classifier", lambda config, world, *, fresh: Labels(config, world, Classifier(config)))


class StopAt:
    """Asks for an end before step `step` is made."""

    def __init__(self, step: int) -> None:
        self._calls, self._step = 0, step

    def __call__(self) -> int | None:
        self._calls += 1
        return 15 if self._calls == self._step else None


def train(config, **options):
    outcome = pretrain(config, **options)
    state = load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])
    return outcome, state


@pytest.fixture
def labels_config(make_config, tmp_path):
    def make(output: str, **changes):
        settings = {"objective": "test_labels", "optim__name": "adamw", "optim__lr": 1e-2, "train__steps": 8}
        return make_config(output=str(tmp_path / output), **settings | changes)

    return make


def test_an_objective_of_ones_own_learns_and_goes_on_bit_for_bit(labels_config):
    (outcome, whole) = train(labels_config("whole"))
    assert outcome[:2] == (8, None)
    (outcome, _) = train(labels_config("stopped"), stop_signal=StopAt(4))
    assert outcome[:2] == (4, 15)
    (outcome, resumed) = train(labels_config("stopped"))
    assert outcome[:2] == (8, None)
    assert whole["objective"] == resumed["objective"] == {"steps": 8}
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name])
    first, second = (read_metrics(Path(labels_config(run).output)) for run in ("whole", "stopped"))
    assert [record["step"] for record in second] == list(range(1, 9))
    for a, b in zip(first, second, strict=True):
        assert (a["loss"], a["accuracy"]) == (b["loss"], b["accuracy"])
        assert a["loss"] == a["cross_entropy"]


@pytest.mark.parametrize("cache", [False, True])
def test_micro_batches_of_any_objective_are_those_of_one_batch(labels_config, cache):
    """Without batch norm the mean of two halves is the whole, and so is the loss of all embeddings."""
    _, whole = train(labels_config("whole"))
    _, parts = train(labels_config("parts", train__accumulate=2, loss__cache=cache))
    for name, value in whole["model"].items():
        torch.testing.assert_close(value, parts["model"][name], rtol=1e-4, atol=1e-5)


def test_micro_batches_may_be_others_when_a_run_goes_on(labels_config):
    """Where one loss is still of as many images: on devices with less memory, or more of them."""
    _, whole = train(labels_config("whole"))
    train(labels_config("parts"), stop_signal=StopAt(4))
    with pytest.raises(UserError, match=r"holds a run with train.accumulate = 1, this one has 2: set it back"):
        train(labels_config("parts", train__accumulate=2))
    _, parts = train(labels_config("parts", train__accumulate=2, loss__cache=True))
    for name, value in whole["model"].items():
        torch.testing.assert_close(value, parts["model"][name], rtol=1e-4, atol=1e-5)


def train_on_rank(world, config, *stops):
    del world  # `pretrain` finds the ranks itself
    stop = StopAt(*stops) if stops and os.environ["RANK"] == "1" else lambda: None
    return pretrain(config, stop_signal=stop)[:2]


@pytest.mark.parametrize("stops", [pytest.param((), marks=pytest.mark.slow), (4,)], ids=["whole", "stopped"])
def test_two_ranks_train_it_as_one(labels_config, stops):
    """Also in two goes, the first ended by a signal to one of them."""
    _, alone = train(labels_config("alone"))
    config = labels_config("ranks")
    if stops:
        assert run_on_ranks(train_on_rank, 2, config, *stops, join=False) == [(4, 15)] * 2
    assert run_on_ranks(train_on_rank, 2, config, join=False) == [(8, None)] * 2
    state = load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])
    assert state["step"] == 8
    for name, value in alone["model"].items():
        torch.testing.assert_close(value, state["model"][name], rtol=1e-4, atol=1e-5)
    # what is reported is the mean over ranks
    for a, b in zip(*(read_metrics(Path(labels_config(run).output)) for run in ("alone", "ranks")), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["accuracy"] == pytest.approx(b["accuracy"], abs=1e-6)


def test_hooks_see_every_step(labels_config):
    class Steps(Hook):
        def __init__(self) -> None:
            self.seen = []

        def __call__(self, moment: Moment) -> None:
            self.seen.append((moment.step, bool(moment.logs)))

    steps = Steps()
    pretrain(labels_config("run", train__steps=5, train__log_every=2), hooks=[steps])
    assert steps.seen == [(0, False), (1, False), (2, True), (3, False), (4, True), (5, True)]


@pytest.mark.parametrize("every", [1, 2])
def test_only_a_hook_that_wants_logs_makes_reports(labels_config, every):
    class Quiet(Hook):
        def __call__(self, moment: Moment) -> None:
            pass

    class Wanting(Quiet):
        wants_logs = True

    reported = {}
    for kind in (Quiet, Wanting):
        hook = kind()
        hook.every = every
        config = labels_config(kind.__name__, train__steps=5, train__log_every=100)
        pretrain(config, hooks=[hook])
        reported[kind] = [record["step"] for record in read_metrics(Path(config.output))]
    assert reported == {Quiet: [5], Wanting: [*range(every, 5, every), 5]}


class NeedsNothing(Labels):
    def __init__(self, config, world) -> None:
        super().__init__(config, world)
        self.needs = Needs(anchor=False, view=False, labels=True)


class OddGrid(Labels):
    def __init__(self, config, world) -> None:
        super().__init__(config, world)
        self.needs = Needs(view=True, grids=(5,), labels=True)


class Misspelt(Labels):
    def __init__(self, config, world) -> None:
        super().__init__(config, world)
        self.weights = {"cross_entrpy": 1.0}


class Never(Hook):
    every = 0


@pytest.mark.parametrize(
    ("objective", "hooks", "message"),
    [
        (NeedsNothing, [], r"^the objective's needs: no view at all"),
        (OddGrid, [], r"^the objective's needs: a grid of 5: must divide data.image_size = 32"),
        (Misspelt, [], r"^Misspelt.weights: no update logs 'cross_entrpy'; they log cross_entropy, accuracy$"),
        (Labels, [Never()], r"^hook Never: every = 0: must be 1 step or more$"),
    ],
)
def test_what_an_author_gets_wrong_is_one_clear_error_at_once(labels_config, objective, hooks, message):
    register("test_wrong", lambda config, world, *, fresh: objective(config, world))
    config = labels_config("wrong", objective="test_wrong", train__log_every=100)
    with pytest.raises(UserError, match=message):
        pretrain(config, hooks=hooks)
    assert not (Path(config.output) / "quarantine.csv").exists()  # no sample is blamed


def test_rates_are_reported_of_what_is_trained(labels_config, make_config, tmp_path):
    pretrain(labels_config("heads", optim__bias_lr=1e-3, train__steps=1))
    (record,) = read_metrics(tmp_path / "heads")
    assert {name: rate for name, rate in record.items() if "lr" in name} == {"lr": 1e-2, "bias_lr": 1e-3}
    pretrain(make_config(output=str(tmp_path / "both"), optim__backbone_lr=0.02, train__steps=1))
    (record,) = read_metrics(tmp_path / "both")
    assert {name: rate for name, rate in record.items() if "lr" in name} == {"lr": 0.05, "backbone_lr": 0.02}


def test_an_objective_that_is_not_known_is_named(make_config):
    config = make_config(objective="fgsls")
    with pytest.raises(UserError, match=r"objective = 'fgsls': must be one of fgssl.*; did you mean 'fgssl'\?"):
        build_objective(config, None)


def test_a_network_of_ones_own_is_scored_and_taken_home(labels_config, archive_path, capsys):
    config = labels_config("run", objective="test_classifier", evaluate__every=8, evaluate__images=20)
    _, state = train(config)
    record = read_metrics(Path(config.output))[-1]
    assert {name for name in record if name.startswith("score")} == {"score_matching_backbone", "score_knn_backbone"}
    report = fastfgssl.evaluate(config.output, archive_path, "knn")
    assert set(report.results) == {"backbone", "colour"}
    arguments = ("--checkpoint", config.output, "--data", archive_path, "--protocol", "knn")
    assert run_here(evaluate.main, *arguments) == 0
    assert "confusion of features 'backbone'" in capsys.readouterr().out
    backbone = fastfgssl.load(config.output)
    assert backbone.step == 8
    assert torch.equal(backbone.state_dict()["backbone.conv1.weight"], state["model"]["backbone.conv1.weight"])


def test_a_network_without_features_is_trained_and_not_scored(labels_config, archive_path):
    with pytest.raises(UserError, match=r"evaluate.every: the network of test_labels has no features"):
        train(labels_config("scored", evaluate__every=4))
    config = labels_config("run", train__steps=1)
    train(config)
    for use in (fastfgssl.load, lambda run: fastfgssl.evaluate(run, archive_path)):
        with pytest.raises(UserError, match=r"objective = 'test_labels': its network has no features"):
            use(config.output)
