"""Cases of suite `step`: one step of fine-tuning on resident images, against what it cannot do without."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastfgssl.benchmarks.measure import CheckFailed, Record, Suite, require_close
from fastfgssl.config.schema import STAGES, Config, SupervisedConfig
from fastfgssl.data.batch import Batch
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.precision import Precision
from fastfgssl.training.step import TrainingStep

CLASSES = 7
PASSES = "its passes alone, in plain PyTorch"


def finetuning(suite: Suite, config: Config, batch: Batch, title: str, runs: int) -> Iterator[Record]:
    """Progressive against the passes that it is made of, joint and plain against progressive.

    Passes: of each head its images forward through the layers below it, and back; no update. Their losses are those
    of the step, which is checked before anything is timed.
    """
    labels = torch.arange(len(batch.ids), device=suite.device) % CLASSES
    batch = batch._replace(anchor=None, labels=labels)
    passes = {schedule: _Passes(config, schedule, suite) for schedule in ("progressive", "joint", "plain")}
    for schedule, plain in passes.items():
        _check(config, schedule, suite, plain, batch)
    steps = {schedule: _make_step(config, schedule, suite) for schedule in passes}
    for schedule, step in steps.items():
        alone = (PASSES, partial(passes[schedule], batch))
        yield suite.compare(
            f"supervised.{schedule}, {title}",
            ours=partial(step, batch),
            baseline=alone
            if schedule == "progressive"
            else ("supervised.progressive", partial(steps["progressive"], batch)),
            limit=alone,
            items=len(batch.ids),
            unit="images/s",
            runs=runs,
        )


def _make_step(config: Config, schedule: str, suite: Suite) -> TrainingStep:
    names = tuple(str(label) for label in range(CLASSES))
    supervised = SupervisedConfig(classes=names, class_counts=(1,) * CLASSES)
    config = replace(config, objective=f"supervised.{schedule}", supervised=supervised)
    torch.manual_seed(0)
    world = World.alone(suite.device)
    return TrainingStep(build_objective(config, world), config, world)


def _check(config: Config, schedule: str, suite: Suite, passes: _Passes, batch: Batch) -> None:
    """While weights stand still, the losses of a step are those of the passes, in float32 to its rounding."""
    still = replace(config, optim=replace(config.optim, lr=1e-12))
    logs = _make_step(still, schedule, suite)(batch)
    losses = passes(batch)
    ours = {name.removeprefix("loss_"): value for name, value in logs.items() if name.startswith("loss_")}
    if ours.keys() != losses.keys():
        raise CheckFailed(f"supervised.{schedule}: has losses of {', '.join(ours)}, not of {', '.join(losses)}")
    for head, want in losses.items():
        tolerance = 1e-4 if config.train.precision == "float32" else 0.05
        require_close(f"supervised.{schedule}, head {head}", ours[head], want, tolerance=tolerance)


class _Passes:
    """Forward and backward passes of a ResNet's layers, blocks and heads, each no deeper than its head looks."""

    def __init__(self, config: Config, schedule: str, suite: Suite) -> None:
        self._net: Any = deepcopy(_make_step(config, schedule, suite).objective.model)
        self._schedule = schedule
        self._precision = Precision(config.train.precision, suite.device)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of each head."""
        assert batch.labels is not None
        shown: dict[Any, Any] = dict(zip(STAGES, (*batch.puzzles, batch.puzzle_view), strict=True))
        if self._schedule == "plain":
            return {"all": self._pass({"all": (batch.puzzle_view, batch.labels)})["all"]}
        if self._schedule == "joint":
            pairs = {
                head: (images, batch.labels) if head == "all" else (images[head::3], batch.labels[head::3])
                for head, images in shown.items()
            }
            return self._pass(pairs)
        losses: dict[str, Tensor] = {}
        for head, images in shown.items():
            losses |= self._pass({head: (images, batch.labels)})
        return losses

    def _pass(self, shown: dict[Any, tuple[Any, Tensor]]) -> dict[str, Tensor]:
        self._net.zero_grad(set_to_none=True)
        with self._precision.autocast():
            losses = {
                str(head): functional.cross_entropy(self._logits(head, images).float(), labels)
                for head, (images, labels) in shown.items()
            }
        torch.stack(list(losses.values())).sum().backward()
        return {head: loss.detach() for head, loss in losses.items()}

    def _logits(self, head: Any, images: Tensor) -> Tensor:
        net, backbone = self._net, self._net.backbone
        x, taps = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images)))), []
        layers = (backbone.layer2, backbone.layer3, backbone.layer4)
        x = backbone.layer1(x)
        for layer in layers if head == "all" else layers[: head + 1]:
            x = layer(x)
            taps.append(x)
        if self._schedule == "plain":
            return net.classifier(x.mean(dim=(2, 3)))
        if head == "all":
            pooled = torch.cat([block(tap) for block, tap in zip(net.blocks, taps, strict=True)], dim=1)
        else:
            pooled = net.blocks[head](x)
        place = STAGES.index(head)
        return net.classifiers[place](net.heads[place](pooled))
