"""The trainer: what it leaves behind, both schedules, every precision, and going on after any kind of end."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastfgssl.archive.manifest import Archive
from fastfgssl.archive.prepare import PrepareOptions, prepare
from fastfgssl.config.files import load_config
from fastfgssl.config.schema import STAGES
from fastfgssl.pretraining import pretrain
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.signals import StopRequest
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.hooks import Hook
from fastfgssl.training.sinks import read_metrics
from helpers.faulty_runs import flat
from helpers.ranks import run_on_ranks
from helpers.runs import losses, trained_change


def test_a_run_leaves_what_the_readme_names(make_config):
    config = make_config(train__steps=5, train__checkpoint_every=2, train__keep_checkpoints=2)
    outcome = pretrain(config)
    assert outcome[:2] == (5, None)
    output = Path(config.output)
    assert load_config(output / "config.yaml") == config
    records = read_metrics(output)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    names = "step epoch loss loss_0 loss_1 loss_2 loss_all lr backbone_lr images_per_second data_wait"
    terms = ("on_diagonal", "off_diagonal", "dead_dimensions", "effective_rank")
    of_heads = [f"{term}_{head}" for term in terms for head in STAGES]
    assert records[-1].keys() == {*names.split(), *of_heads}
    for head in (0, 1, 2, "all"):
        loss, on, off = (records[-1][f"{name}_{head}"] for name in ("loss", "on_diagonal", "off_diagonal"))
        assert loss == pytest.approx(on + 0.0051 * off, rel=1e-5)
        assert 1 <= records[-1][f"effective_rank_{head}"] <= 11
    assert records[-1]["epoch"] == pytest.approx(5 * 12 / 84)
    last = records[-1]
    assert last["loss"] == pytest.approx(sum(last[f"loss_{head}"] for head in (0, 1, 2)) + 2 * last["loss_all"])
    assert 0 <= last["data_wait"] <= 1
    assert last["images_per_second"] > 0
    steps = [load_checkpoint(path)["step"] for path in list_checkpoints(output / "checkpoints")]
    assert steps == [0, 4, 5]
    events = EventAccumulator(str(output)).Reload()
    assert [scalar.step for scalar in events.Scalars("loss/loss_all")] == [1, 2, 3, 4, 5]
    assert len(events.Scalars("effective_rank/effective_rank_all")) == 5
    with Image.open(output / "views.png") as picture:
        assert picture.width > 5 * 96


def test_training_lowers_the_loss(make_config):
    config = make_config(train__steps=40, optim__name="adamw", optim__lr=2e-3, train__log_every=1)
    pretrain(config)
    records = losses(config.output)
    for head in STAGES:
        first, last = (sum(r[f"loss_{head}"] for r in part) / 5 for part in (records[:5], records[-5:]))
        assert last < 0.8 * first


class SignalAfter(Hook):
    """Sends this process a signal after step `step`."""

    def __init__(self, step: int, number: int) -> None:
        self._step, self._number = step, number

    def __call__(self, moment) -> None:
        if moment.step == self._step:
            os.kill(os.getpid(), self._number)


def pretrain_stopped(config, step: int, number: int):
    with StopRequest() as request:
        return pretrain(config, hooks=[SignalAfter(step, number)], stop_signal=lambda: request.signal_number)


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [
        ("progressive", "lars"),
        ("joint", "adamw"),
        pytest.param("joint", "lars", marks=pytest.mark.slow),
        pytest.param("progressive", "sgd", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_after_any_step_goes_on_bit_for_bit(make_config, tmp_path, schedule, optimizer):
    settings = {"train__schedule": schedule, "train__steps": 5, "optim__name": optimizer, "optim__warmup_epochs": 0.3}
    settings["train__precision"] = "float16" if schedule == "joint" else "float32"  # whose loss is scaled
    whole = make_config(output=str(tmp_path / "whole"), **settings)
    pretrain(whole)
    for step in (1, 2, 3):
        config = make_config(output=str(tmp_path / f"stopped-{step}"), **settings)
        number = signal.SIGTERM if step == 1 else signal.SIGINT
        # the signal comes after the step's question to the other ranks: the next step answers it
        assert pretrain_stopped(config, step, number)[:2] == (step + 1, number)
        assert pretrain(config)[:2] == (5, None)
        assert losses(config.output) == losses(whole.output)
    states = [load_checkpoint(list_checkpoints(Path(run) / "checkpoints")[-1]) for run in (whole.output, config.output)]
    assert bool(states[0]["scaler"]) == (schedule == "joint")
    whole, resumed = ({name: leaf for name, leaf in flat(state).items() if "/hooks/" not in name} for state in states)
    assert whole == resumed  # hooks lack what was not reported: the steps that a signal ended


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_logs_no_step_twice(make_config, tmp_path):
    settings = {"train__steps": 6, "train__checkpoint_every": 2}
    whole = make_config(output=str(tmp_path / "whole"), **settings)
    pretrain(whole)
    # what a run leaves that is killed in its fifth step, in the middle of a line and of a checkpoint
    output = tmp_path / "killed"
    shutil.copytree(whole.output, output)
    (output / "checkpoints" / "step_000000006.pt").unlink()
    (output / "checkpoints" / "step_000000006.pt.partial").write_bytes(b"half")
    lines = (output / "metrics.jsonl").read_text().splitlines()
    (output / "metrics.jsonl").write_text("\n".join([*lines[:5], lines[5][:20]]))
    config = make_config(output=str(output), **settings)
    assert pretrain(config)[:2] == (6, None)
    assert losses(output) == losses(whole.output)


def test_a_complete_run_is_left_alone_and_can_be_lengthened(make_config, caplog):
    config = make_config(train__steps=2)
    pretrain(config)
    before = (Path(config.output) / "metrics.jsonl").read_bytes()
    assert pretrain(config)[:2] == (2, None)
    assert (Path(config.output) / "metrics.jsonl").read_bytes() == before
    longer = make_config(train__steps=3)
    assert pretrain(longer)[:2] == (3, None)
    notice = "train.steps from 2 to 3: from step 2 on the learning rate follows the new length"
    assert caplog.messages.count(notice) == 1
    assert len(read_metrics(Path(config.output))) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train__batch_size": 14}, "train.batch_size = 12, this one has 14"),
        ({"seed": 3}, "seed = 0, this one has 3"),
        ({"train__heads": [0, 1]}, r"train.heads = \[0, 1, 2, 'all'\], this one has \[0, 1\]"),
    ],
)
def test_a_run_is_not_continued_as_another(make_config, change, message):
    pretrain(make_config(train__steps=1))
    with pytest.raises(UserError, match=message):
        pretrain(make_config(**({"train__steps": 2} | change)))


def test_a_moved_archive_is_the_same_and_another_one_is_not(make_config, archive_path, tmp_path, phantom_folder):
    pretrain(make_config(train__steps=1))
    shutil.copytree(archive_path, tmp_path / "moved")
    assert pretrain(make_config(train__steps=2, data__path=str(tmp_path / "moved")))[:2] == (2, None)

    prepare(PrepareOptions(sources=[phantom_folder / "images"], out=tmp_path / "x"))
    with pytest.raises(UserError, match="another archive"):
        pretrain(make_config(train__steps=3, data__path=str(tmp_path / "x")))


def first_loss(config) -> float:
    """The loss of the first step, before any update has changed the network."""
    assert pretrain(config)[:2] == (1, None)
    return losses(config.output)[0]["loss"]


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"train__precision": "bfloat16"}, 0.1),
        ({"train__precision": "float16"}, 0.02),
        ({"train__channels_last": False}, 1e-4),
        ({"train__compile": True, "train__heads": [0]}, 1e-4),  # each part that is compiled takes ten seconds
        ({"loss__algorithm": "direct"}, 1e-4),
    ],
)
def test_means_of_speed_change_no_result(make_config, tmp_path, change, tolerance):
    settings = {"train__steps": 1, "train__schedule": "joint", "train__heads": change.get("train__heads", ["all"])}
    exact = first_loss(make_config(output=str(tmp_path / "exact"), **settings))
    config = make_config(output=str(tmp_path / "changed"), **settings | change)
    assert first_loss(config) == pytest.approx(exact, rel=tolerance)
    state = load_checkpoint(list_checkpoints(Path(config.output) / "checkpoints")[-1])
    assert bool(state["scaler"]) == (change.get("train__precision") == "float16")
    assert all(value.dtype != torch.float16 for value in state["model"].values())


def test_micro_batches_are_averaged(make_config, tmp_path):
    settings = {"train__steps": 1, "train__schedule": "joint", "train__heads": ["all"], "train__batch_size": 24}
    config = make_config(output=str(tmp_path / "both"), train__accumulate=2, **settings)
    both = first_loss(config)
    halves = make_config(output=str(tmp_path / "halves"), **(settings | {"train__batch_size": 12, "train__steps": 2}))
    # at a rate of zero the second step of the halves sees the network of the first
    pretrain(dataclasses.replace(halves, optim=dataclasses.replace(halves.optim, lr=1e-30)))
    assert both == pytest.approx(sum(record["loss"] for record in losses(halves.output)) / 2, rel=1e-5)


def test_barlow_twins_is_one_head_without_puzzles(make_config):
    config = make_config(train__heads=[2], model__grids=[4, 2, 1], train__steps=2, data__views="barlow")
    pretrain(config)
    assert set(losses(config.output)[0]) == {"step", "loss", "loss_2"}


def test_a_network_that_has_diverged_is_not_saved(make_config):
    config = make_config(train__steps=20, optim__lr=1e30, train__log_every=20, train__checkpoint_every=1)
    with pytest.raises(UserError, match=r"5 steps in a row, to step 5, are not finite: .* before it are intact"):
        pretrain(config)
    assert [path.name for path in list_checkpoints(Path(config.output) / "checkpoints")] == ["step_000000000.pt"]


def test_memory_that_does_not_suffice_is_one_clear_error(make_config, monkeypatch):
    monkeypatch.setattr("fastfgssl.training.trainer.TrainingStep.__call__", lambda *_, **__: torch.empty(2**60))
    config = make_config()
    with pytest.raises(UserError, match=r"^out of memory while making step 1: lower train.batch_size"):
        pretrain(config)
    assert list_checkpoints(Path(config.output) / "checkpoints")


@pytest.mark.parametrize("place", ["training.run.build_objective", "training.trainer.TrainingStep"])
def test_memory_that_does_not_hold_the_network_is_one_clear_error(make_config, monkeypatch, place):
    monkeypatch.setattr(f"fastfgssl.{place}", lambda *_, **__: torch.empty(2**60))
    with pytest.raises(UserError, match=r"^out of memory while placing the network: lower"):
        pretrain(make_config())


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "views.png"])
def test_an_output_that_is_in_the_way_is_one_clear_error(make_config, name):
    config = make_config()
    path = Path(config.output) / name
    path.mkdir(parents=True)
    with pytest.raises(UserError, match=f"^cannot write {path}: Is a directory$"):
        pretrain(config)


def test_metrics_that_are_not_ours_are_dropped(make_config):
    config = make_config()
    Path(config.output).mkdir()
    (Path(config.output) / "metrics.jsonl").write_bytes(b'\xff\n5\n{"loss": 1}\n{"step": "x"}\n')
    pretrain(config)
    assert [record["step"] for record in read_metrics(Path(config.output))] == [1, 2, 3, 4]


def test_a_run_goes_on_from_the_last_whole_checkpoint_and_sets_the_damaged_ones_aside(make_config):
    settings = {"train__steps": 4, "train__checkpoint_every": 1, "train__keep_checkpoints": 1}
    pretrain(make_config(**settings | {"train__steps": 2, "train__keep_checkpoints": 2}))
    folder = Path(make_config().output) / "checkpoints"
    (folder / "step_000000002.pt").write_bytes(b"cut short")
    (folder / "step_000000003.partial").write_bytes(b"half")
    assert pretrain(make_config(**settings))[:2] == (4, None)
    assert sorted(path.name for path in folder.iterdir()) == [
        "step_000000000.pt",
        "step_000000002.damaged",
        "step_000000004.pt",
    ]


def test_the_archive_of_these_tests_has_several_shards(archive_path):
    assert len(Archive.open(archive_path).shard_sizes) > 2


def test_a_run_from_before_a_key_was_known_goes_on(make_config):
    config = make_config(train__steps=1)
    pretrain(config)
    last = list_checkpoints(Path(config.output) / "checkpoints")[-1]
    state = load_checkpoint(last)
    del state["config"]["model.block"]
    torch.save(state, last)
    assert pretrain(make_config(train__steps=2))[:2] == (2, None)
    with pytest.raises(UserError, match=r"holds a run with model.block = 'full', this one has 'light'"):
        pretrain(make_config(train__steps=3, model__block="light"))


def pretrain_on_rank(world, config):
    pretrain(config)


@pytest.mark.parametrize(("ranks", "schedule"), [(2, "joint"), (3, "progressive")])
def test_ranks_train_as_one_process_does(make_config, tmp_path, ranks, schedule):
    """With batch statistics of the global batch, a step on several ranks is that of one process on all images."""
    settings = {"train__steps": 1, "train__batch_norm": "sync", "train__schedule": schedule, "optim__lr": 1e-6}
    alone = make_config(output=str(tmp_path / "alone"), **settings)
    pretrain(alone)
    config = dataclasses.replace(alone, output=str(tmp_path / "ranks"))
    run_on_ranks(pretrain_on_rank, ranks, config, join=False)
    assert losses(config.output)[0] == pytest.approx(losses(alone.output)[0], rel=1e-3)
    change, expected = trained_change(config.output), trained_change(alone.output)
    assert (change - expected).norm() < 0.01 * expected.norm()
