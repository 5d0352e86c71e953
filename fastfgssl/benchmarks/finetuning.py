"""Cases of suite `step`: one step of fine-tuning on resident images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fastfgssl.benchmarks.measure import Record, Suite
from fastfgssl.config.schema import Config, SupervisedConfig
from fastfgssl.data.batch import Batch
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.precision import Precision
from fastfgssl.training.step import TrainingStep

CLASSES = 7


def finetuning(suite: Suite, config: Config, batch: Batch, title: str, runs: int) -> Iterator[Record]:
    """Progressive against the passes that it is made of, joint and plain against progressive."""
    labels = torch.arange(len(batch.ids), device=suite.device) % CLASSES
    batch = batch._replace(anchor=None, labels=labels)
    steps = {schedule: _Step(config, schedule, suite) for schedule in ("progressive", "joint", "plain")}
    progressive = steps["progressive"]
    baselines = {
        "progressive": ("its forward and backward passes alone", partial(progressive.passes, batch)),
        "joint": ("supervised.progressive", partial(progressive, batch)),
        "plain": ("supervised.progressive", partial(progressive, batch)),
    }
    for schedule, step in steps.items():
        yield suite.compare(
            f"supervised.{schedule}, {title}",
            ours=partial(step, batch),
            baseline=baselines[schedule],
            limit=("its forward and backward passes alone", partial(step.passes, batch)),
            items=len(batch.ids),
            unit="images/s",
            runs=runs,
        )


class _Step:
    """A step of an objective, and what it cannot do without: its updates' losses and their gradients."""

    def __init__(self, config: Config, schedule: str, suite: Suite) -> None:
        names = tuple(str(label) for label in range(CLASSES))
        supervised = SupervisedConfig(classes=names, class_counts=(1,) * CLASSES)
        config = replace(config, objective=f"supervised.{schedule}", supervised=supervised)
        torch.manual_seed(0)
        world = World.alone(suite.device)
        self._objective = build_objective(config, world)
        self._step = TrainingStep(self._objective, config, world)
        self._precision = Precision(config.train.precision, suite.device)

    def __call__(self, batch: Batch) -> Any:
        return self._step(batch)

    def passes(self, batch: Batch) -> None:
        for update in self._objective.updates:
            self._objective.model.zero_grad(set_to_none=True)
            with self._precision.autocast():
                output: Any = update(batch)
            output.loss.backward()
