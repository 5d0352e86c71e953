"""A run that goes on with other ranks, or micro-batches, is the run that was begun: each object that has a state."""

from __future__ import annotations

import math
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastfgssl.archive.manifest import Archive
from fastfgssl.data.order import Order
from fastfgssl.finetuning import finetune
from fastfgssl.pretraining import pretrain
from fastfgssl.training.checkpoint import list_checkpoints, load_checkpoint
from fastfgssl.training.cost import read_starts
from fastfgssl.training.hooks import Hook
from fastfgssl.training.sinks import read_metrics
from helpers.damage import damage_sample
from helpers.further import further
from helpers.ranks import run_on_ranks

STEPS = 6
GOES = ((1, 2), (3, 4), (2, STEPS))  # ranks, and the step after which a go ends, which makes one at least
BYOL = {
    "objective": "byol",
    "baseline__projector": [32, 16],
    "baseline__predictor": 8,
    "baseline__momentum": 0.9,
    "optim__name": "adamw",
    "optim__warmup_epochs": 0.5,
}
LABELS = {
    "objective": "supervised.joint",
    "supervised__mix": "mixup",  # random numbers of each image
    "supervised__centre_weight": 0.1,
    "optim__name": "sgd",  # Adam would make steps of what rounding leaves of a gradient of zero
    "optim__lr": 1e-2,
    "optim__ema_decay": 0.9,
    "optim__clip_norm": 1.0,
    "optim__layer_decay": 0.7,
    "optim__freeze_epochs": 0.03,
    "evaluate__every": 2,
    "evaluate__patience": 30,
    "train__batch_size": 36,  # of 63: epochs end, and a class's centres are made
}


class Shown(Hook):
    """What each step is shown, a row an image: its number, and checksums of all that the step gets of it."""

    def __init__(self) -> None:
        self.rows: dict[int, list[tuple]] = {}

    def __call__(self, moment) -> None:
        batch = moment.batch
        parts = [batch.anchor, batch.puzzle_view, *batch.puzzles, batch.labels, batch.draws]
        arrays = [np.ascontiguousarray(part) for part in parts if part is not None]
        self.rows[moment.step] = [
            (int(sample), *(zlib.crc32(array[row].tobytes()) for array in arrays))
            for row, sample in enumerate(batch.ids)
        ]


def go(world: None, config, step: int) -> dict[int, list[tuple]]:
    """Trains until `step` steps are done; what this rank was shown."""
    shown, asked = Shown(), [0]

    def stop() -> int | None:
        asked[0] += 1  # before each step of this go
        return 15 if begun + asked[0] == step < STEPS else None

    checkpoints = list_checkpoints(Path(config.output) / "checkpoints")
    begun = load_checkpoint(checkpoints[-1])["step"] if checkpoints else 0
    verb = finetune if config.objective.startswith("supervised.") else pretrain
    assert verb(config, hooks=[shown], stop_signal=stop).steps_done == step
    return shown.rows


def all_of(values: Any, name: str = "") -> dict[str, Any]:
    """The leaves of what a checkpoint holds, by name."""
    if isinstance(values, (dict, list, tuple)):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        return {key: leaf for part, value in items for key, leaf in all_of(value, f"{name}/{part}").items()}
    return {name: values}


def require_same(alone: dict[str, Any], ranks: dict[str, Any], before: dict[str, Any], tolerance: float) -> None:
    """Every leaf: tensors to rounding, in relation to how far training has moved them; all else exactly."""
    alone, ranks, before = (all_of(state) for state in (alone, ranks, before))
    assert alone.keys() == ranks.keys()
    for name, value in alone.items():
        other = ranks[name]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            moved = (value - before.get(name, torch.zeros_like(value))).double().norm()
            assert (value - other).double().norm() <= tolerance * moved + 1e-6, name
        elif isinstance(value, torch.Tensor):
            assert value.equal(other), name
        elif isinstance(value, float):
            assert math.isclose(value, other, rel_tol=tolerance), (name, value, other)
        elif not re.match("/config/(output|train.accumulate|loss.cache)", name):
            assert value == other, name


def states(config, name: str = "step_*.pt") -> list[dict[str, Any]]:
    return [load_checkpoint(path) for path in sorted((Path(config.output) / "checkpoints").glob(name))]


@pytest.fixture(scope="module")
def damaged(archive_path, tmp_path_factory) -> Archive:
    """The archive with one training sample, which all runs meet, whose bytes have changed."""
    archive = Archive.open(shutil.copytree(archive_path, tmp_path_factory.mktemp("damaged") / "archive"))
    met = Order(archive.shard_sizes, seed=0, window=2).slots(12, 24).ids
    fit = met[archive.columns(met, ("split",))["split"] == "fit"]
    damage_sample(archive, int(fit[0]), "flipped")
    return archive


@pytest.mark.parametrize(
    "settings",
    [
        BYOL,
        LABELS,
        *further(
            {"train__schedule": "progressive", "optim__name": "lars"},
            {"train__schedule": "joint", "train__accumulate": 2, "loss__cache": True},
            BYOL | {"objective": "simsiam"},
            BYOL | {"objective": "vicreg", "optim__name": "sgd"},
            BYOL | {"objective": "simclr", "train__precision": "float16"},
            LABELS | {"objective": "supervised.progressive", "supervised__balance": "sampling"},
        ),
    ],
    ids=lambda settings: settings.get("objective", "fgssl"),
)
def test_another_number_of_ranks_goes_on_with_every_state(make_config, damaged, tmp_path, settings):
    settings = {
        "data__path": str(damaged.path),
        "train__steps": STEPS,
        "train__batch_norm": "sync",
        "train__log_every": 5,  # at no step that a go ends with
        "train__keep_checkpoints": 9,
        "optim__lr": 1e-4,
        **settings,
    }
    alone, ranks = (make_config(output=str(tmp_path / name), **settings) for name in ("alone", "ranks"))
    expected = go(None, alone, STEPS)
    found: dict[int, list[tuple]] = {}
    for count, step in GOES:
        of_ranks = run_on_ranks(go, count, ranks, step, join=False) if count > 1 else [go(None, ranks, step)]
        found |= {step: [row for rows in of_ranks for row in rows[step]] for step in of_ranks[0]}
    # the same global batches, bit for bit
    assert found == expected
    # EMA, scaler, schedule, optimiser, batch norms, the objective's own, what hooks and the loop have counted
    tolerance = 0.05 if alone.train.precision == "float16" else 0.01
    (first, *_, last), (*_, last_of_ranks) = states(alone), states(ranks)
    require_same(last, last_of_ranks, first, tolerance)
    assert last["skipped"] == {"count": 0, "in_a_row": 0}
    for one, other in zip(*(read_metrics(Path(config.output)) for config in (alone, ranks)), strict=True):
        equal = [key for key in one if re.match("step|epoch|loss|.*lr$|val_", key)]
        assert [other[key] for key in equal] == pytest.approx([one[key] for key in equal], rel=tolerance)
    listed = [(Path(config.output) / "quarantine.csv").read_text() for config in (alone, ranks)]
    assert listed[0] == listed[1]
    if best := states(alone, "best.pt"):
        require_same(best[0], states(ranks, "best.pt")[0], first, tolerance)
    starts = read_starts(Path(ranks.output) / "provenance.json")
    assert [start["ranks"] for start in starts] == [count for count, _ in GOES]
    assert starts[-1]["cost"]["steps_made_twice"] == 0
