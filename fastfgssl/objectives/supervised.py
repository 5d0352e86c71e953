"""Learning from labels: the hierarchy under the method's schedule, in one update, or not at all.

`progressive` (arXiv 2308.05770, as PMG, arXiv 2003.03836): an update for each granularity, finest first, each of the
puzzles of one grid and the classifier of its head, and one of whole images and the head that sees all stages.

`joint`: one update. Each image is shown whole and cut at one of the three grids; its place in the batch says which.
The loss of a head is the mean over its third, so that the expected gradient is that of all three puzzles of every
image, for little more than half of the work.

`plain`: backbone, average, linear classifier; whole images. What everybody does, and the control.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastfgssl.config.schema import STAGES, Config, Stage
from fastfgssl.data.batch import Batch, Needs
from fastfgssl.loss.classification import class_weights, cross_entropy, log_priors
from fastfgssl.models.average import WeightAverage
from fastfgssl.models.backbone import build_backbone
from fastfgssl.models.classifier import Classifier, ClassifyingNetwork, PlainClassifier
from fastfgssl.models.weights import load_start
from fastfgssl.objectives.base import Objective, Output, Update, made, place_model
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError

WHOLE: Stage = "all"


class ClassifyUpdate(Update):
    """Trains the classifiers of `stages`, and everything below them."""

    def __init__(
        self, network: ClassifyingNetwork, stages: tuple[Stage, ...], config: Config, world: World, *, in_turns: bool
    ) -> None:
        """in_turns: shows each head the puzzles of an equal part of the images, instead of all."""
        super().__init__()
        self.trained = nn.ModuleList(network.modules_of(stages))
        self.stages, self._network = stages, _Reference(network)
        puzzles = [stage for stage in stages if stage != WHOLE]
        self._rows = {
            stage: slice(turn, None, len(puzzles)) if in_turns else slice(None) for turn, stage in enumerate(puzzles)
        }
        weights = dict(zip(STAGES, config.loss.weights, strict=True))
        self._weights = torch.tensor([weights[stage] for stage in stages], device=world.device)
        self._loss = _ClassLoss(config, world)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """For each stage the logits [b, K] of its rows' puzzles, or of whole images."""
        return tuple(
            self._network().whole(made(batch.puzzle_view)).logits
            if stage == WHOLE
            else self._network().stage_logits(made(batch.puzzles[stage])[self._rows[stage]], (stage,))[0]
            for stage in self.stages
        )

    def compare(self, embeddings: tuple[Tensor, ...], batch: Batch, *, log: bool) -> Output:
        assert batch.labels is not None
        losses, logs = [], {}
        for stage, logits in zip(self.stages, embeddings, strict=True):
            targets = batch.labels[self._rows.get(stage, slice(None))]
            losses.append(self._loss(logits, targets))
            logs[f"loss_{stage}"] = losses[-1].detach()
            logs[f"accuracy_{stage}"] = (logits.detach().argmax(dim=1) == targets).float().mean()
        return Output((torch.stack(losses) * self._weights).sum(), logs)


class Supervised(Objective):
    """The classifiers of `config.train.heads`, or one on the backbone, under a schedule."""

    def __init__(self, model: ClassifyingNetwork, config: Config, world: World) -> None:
        self.model = model
        heads: tuple[Stage, ...] = (WHOLE,) if isinstance(model, PlainClassifier) else config.train.heads
        grids = tuple(grid if tap in heads else 0 for tap, grid in enumerate(config.model.grids))
        self.needs = Needs(anchor=False, view=WHOLE in heads, grids=grids, labels=True)
        is_joint = config.schedule == "joint"
        groups = [heads] if is_joint else [(head,) for head in heads]
        self.updates = [ClassifyUpdate(model, stages, config, world, in_turns=is_joint) for stages in groups]
        of_stage = dict(zip(STAGES, config.loss.weights, strict=True))
        self.weights = {f"loss_{head}": of_stage[head] for head in heads}
        decay = config.optim.ema_decay
        self._average = WeightAverage(model, decay, shared=(world, world.group)) if decay else None

    @property
    def scored(self) -> nn.Module:
        return self._average.network if self._average else self.model

    def after_step(self, progress: float) -> None:
        if self._average:
            self._average.update()

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict() if self._average else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._average:
            self._average.load_state_dict(state)


def build(config: Config, world: World, *, fresh: bool) -> Supervised:
    """Draws initial weights from torch's global generator: seed it before."""
    classes = config.supervised.classes
    if len(classes) < 2:
        raise UserError(
            f"objective = {config.objective}: learns from labels; train it by `fastfgssl finetune`, which takes the"
            " classes from the archive"
        )
    if config.loss.cache:
        raise UserError(f"loss.cache: of no use to {config.objective}, whose loss is a mean over images; leave it out")
    weights = config.model.weights if fresh else "none"
    starts_from_file = weights not in ("imagenet", "none")
    of_backbone = replace(config.model, weights="none" if starts_from_file else weights)
    backbone = build_backbone(of_backbone, config.data.image_size)
    is_plain = config.objective.endswith(".plain")
    network = (
        PlainClassifier(backbone, classes)
        if is_plain
        else Classifier(backbone, config.model, classes, config.train.heads)
    )
    if starts_from_file:
        load_start(network, backbone, weights, config.model, new=NEW)
    return Supervised(place_model(network, config, world), config, world)


NEW = ("classifier", "auxiliaries")
"""What the names of parameters begin with that no pretraining knows."""


class _ClassLoss:
    """Cross-entropy as `config.supervised` has it."""

    def __init__(self, config: Config, world: World) -> None:
        supervised = config.supervised
        counts = torch.tensor(supervised.class_counts or [1] * len(supervised.classes), device=world.device)
        self._weights = class_weights(counts) if supervised.balance == "weights" else None
        self._log_priors = log_priors(counts) if supervised.balance == "logits" else None
        self._label_smoothing, self._group = supervised.label_smoothing, world.group

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(
            logits,
            targets,
            class_weights=self._weights,
            log_priors=self._log_priors,
            label_smoothing=self._label_smoothing,
            group=self._group,
        )


class _Reference:
    """A network that an update runs but, as a module of its own, would train more of than it does."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self) -> Any:
        return self._network
