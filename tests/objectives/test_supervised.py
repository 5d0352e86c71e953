"""Supervised objectives: what each update minimises, on what, and what it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastfgssl.data.batch import Batch
from fastfgssl.finetuning import finetune
from fastfgssl.loss.rotation import four_rotations
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint

ALONE = World.alone(torch.device("cpu"))
CLASSES = ("a", "b", "c")


@pytest.fixture
def make_objective(make_config):
    def make(name: str, **changes):
        config = make_config(
            objective=name, supervised__classes=list(CLASSES), supervised__class_counts=[8, 3, 1], **changes
        )
        torch.manual_seed(0)
        return build_objective(config, ALONE)

    return make


def make_batch(size: int = 12, draws: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(0)
    view, *puzzles = (torch.randn(size, 3, 32, 32, generator=generator) for _ in range(4))
    numbers = np.random.default_rng(0).random((size, draws), np.float32) if draws else None
    return Batch(None, view, tuple(puzzles), np.arange(size), torch.arange(size) % 3, numbers)


def logits_of(network, images, stage):
    """Through the parts, one after the other."""
    taps = network.backbone(images)
    pooled = [block(tap) for block, tap in zip(network.blocks, taps, strict=True)]
    place = 3 if stage == "all" else stage
    vector = torch.cat(pooled, dim=1) if stage == "all" else pooled[stage]
    return network.classifiers[place](network.heads[place](vector))


@pytest.mark.parametrize("name", ["supervised.progressive", "supervised.joint"])
def test_losses_are_cross_entropies_of_the_heads(make_objective, name):
    objective, batch = make_objective(name, supervised__label_smoothing=0.1), make_batch()
    logs, total = {}, 0.0
    for update in objective.updates:
        output = update(batch)
        logs |= output.logs
        total += output.loss.item()
    shown = {0: batch.puzzles[0], 1: batch.puzzles[1], 2: batch.puzzles[2], "all": batch.puzzle_view}
    want = {}
    for turn, (stage, images) in enumerate(shown.items()):
        # joint shows each head an equal part of the puzzles
        rows = slice(turn, None, 3) if name == "supervised.joint" and stage != "all" else slice(None)
        logits = logits_of(objective.model, images[rows], stage)
        want[stage] = F.cross_entropy(logits, batch.labels[rows], label_smoothing=0.1).item()
        assert logs[f"loss_{stage}"].item() == pytest.approx(want[stage], rel=1e-4)
    assert total == pytest.approx(want[0] + want[1] + want[2] + 2 * want["all"], rel=1e-4)


@pytest.mark.parametrize("name", ["supervised.progressive", "supervised.joint", "supervised.plain"])
def test_an_update_trains_exactly_what_it_says(make_objective, name):
    objective, batch = make_objective(name), make_batch()
    for update in objective.updates:
        objective.model.zero_grad(set_to_none=True)
        update(batch).loss.backward()
        trained = {id(parameter) for parameter in update.parameters()}
        with_gradients = {id(p) for p in objective.model.parameters() if p.grad is not None}
        assert trained == with_gradients


def test_a_prediction_is_the_sum_of_the_trained_heads(make_objective):
    network = make_objective("supervised.joint", train__heads=[1, "all"]).model.eval()
    images = make_batch(4).puzzle_view
    want = logits_of(network, images, 1) + logits_of(network, images, "all")
    torch.testing.assert_close(network.predict(images), want)
    assert list(network.logits(images)) == ["head 1", "all"]


def test_logits_are_shifted_by_the_share_of_a_class_only_while_training(make_objective):
    plain, adjusted = (
        make_objective("supervised.plain", supervised__balance=balance) for balance in ("none", "logits")
    )
    batch = make_batch()
    logits = plain.model.predict(batch.puzzle_view)
    torch.testing.assert_close(logits, adjusted.model.predict(batch.puzzle_view))
    want = F.cross_entropy(logits + torch.tensor([8 / 12, 3 / 12, 1 / 12]).log(), batch.labels)
    # of the control it is the loss itself, whatever the weight of the last head
    torch.testing.assert_close(adjusted.updates[0](batch).loss.detach(), want.detach(), rtol=1e-4, atol=1e-5)


def test_turned_images_have_the_same_loss_as_whole_ones(make_objective):
    """Of classes: the logits are shifted for both, and rotation has its share of the loss."""
    objective = make_objective("supervised.plain", supervised__balance="logits", supervised__rotation_weight=0.1)
    batch, network = make_batch(), objective.model
    shift = torch.tensor([8 / 12, 3 / 12, 1 / 12]).log()
    whole, turned = network.whole(batch.puzzle_view), network.whole(four_rotations(batch.puzzle_view)[12:])
    of_classes = F.cross_entropy(torch.cat((whole.logits, turned.logits)) + shift, batch.labels.repeat(4))
    turns = network.auxiliaries[0].classifier(torch.cat((whole.features, turned.features)))
    want = 0.9 * of_classes + 0.1 * F.cross_entropy(turns, torch.arange(4).repeat_interleave(12))
    torch.testing.assert_close(objective.updates[0](batch).loss, want, rtol=1e-4, atol=1e-5)


def test_a_file_of_timm_is_a_start(make_objective, tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_convnext", num_classes=5)
    torch.save(network.state_dict(), tmp_path / "timm.pt")
    objective = make_objective(
        "supervised.plain",
        model__backbone="timm/test_convnext",
        model__width=1.0,
        model__weights=str(tmp_path / "timm.pt"),
    )
    own = objective.model.backbone.network.state_dict()
    assert own
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in own.items())


def test_mixed_images_are_cut_into_puzzles_of_both(make_objective):
    """CutMix on images of one colour each: every pixel of a puzzle is of the image or of its partner, in its share."""
    objective = make_objective("supervised.progressive", supervised__mix="cutmix")
    assert objective.needs.grids == (0, 0, 0)
    assert objective.needs.view
    batch = make_batch(4, objective.needs.draws)
    colours = torch.arange(1.0, 5.0)[:, None, None, None].expand(4, 3, 32, 32).contiguous()
    batch = batch._replace(puzzle_view=colours, puzzles=(None, None, None))
    inputs = objective.updates[0]._inputs
    mixed, targets = inputs.images(batch), inputs.targets(batch)
    for stage in range(3):
        puzzles = inputs.puzzles(batch, mixed, stage, slice(None))
        for row in range(4):
            own, partner = row + 1.0, (row ^ 1) + 1.0
            share = (puzzles[row] == own).float().mean().item()
            assert share + (puzzles[row] == partner).float().mean().item() == pytest.approx(1)
            assert targets[row, batch.labels[row]].item() == pytest.approx(share, abs=1e-5)
        assert not torch.equal(puzzles, mixed)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "objective": "supervised.plain",
            "model__stem": "small",  # its last map is 4 x 4
            "supervised__centre_weight": 1e-2,
            "supervised__graph_weight": 1.0,
            "supervised__destruction_weight": 1.0,
            "supervised__destruction_grid": 4,
            "supervised__rotation_weight": 0.1,
        },
        {"objective": "supervised.joint", "supervised__mix": "mixup", "supervised__centre_weight": 1e-2},
    ],
    ids=["auxiliaries", "mixup"],
)
def test_auxiliaries_and_mixing_go_on_bit_for_bit(make_config, tmp_path, changes):
    settings = {"train__steps": 5, "train__batch_size": 24, "evaluate__every": 99, "optim__lr": 1e-3}
    whole, stopped = (make_config(output=str(tmp_path / name), **settings | changes) for name in ("whole", "stopped"))
    finetune(whole)
    asked = iter([None, None, None, 15])
    finetune(stopped, stop_signal=lambda: next(asked))  # at step 4: an epoch ends at step 3
    finetune(stopped)
    first, second = (
        load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1]) for config in (whole, stopped)
    )
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    epochs = [value for name, value in first["model"].items() if name.endswith("centres.epochs")]
    assert [value.item() for value in epochs] == [1]


def test_what_cannot_be_is_one_line(make_objective):
    for changes, message in [
        ({"supervised__destruction_weight": 1.0}, "supervised.destruction_grid = 7: must divide"),
        ({"supervised__centre_weight": 1.0, "train__heads": [0, 1]}, "train.heads"),
        ({"supervised__mix": "mixup", "supervised__rotation_weight": 0.1}, "supervised.mix"),
    ]:
        with pytest.raises(UserError, match=message):
            make_objective("supervised.joint", **changes)
