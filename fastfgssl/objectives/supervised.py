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

import numpy as np
import torch
from torch import Tensor, nn

from fastfgssl.config.schema import STAGES, Config, Stage
from fastfgssl.data.batch import Batch, Needs, on_device
from fastfgssl.kernels.jigsaw import jigsaw
from fastfgssl.loss.classification import class_weights, cross_entropy, log_priors
from fastfgssl.models.average import WeightAverage
from fastfgssl.models.backbone import build_backbone
from fastfgssl.models.classifier import Classifier, ClassifyingNetwork, PlainClassifier, Whole
from fastfgssl.models.weights import load_start
from fastfgssl.objectives.auxiliaries import auxiliaries_of, build_auxiliaries, split_draws
from fastfgssl.objectives.base import Objective, Output, Update, compiled, made, place_model
from fastfgssl.objectives.mixing import DRAWS, Mixed, cutmix, mixup, random_permutations
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
        self._auxiliaries = auxiliaries_of(network) if WHOLE in stages else []
        self.trained = nn.ModuleList([*network.modules_of(stages), *self._auxiliaries])
        self.stages, self._network = stages, _Reference(network)
        puzzles = [stage for stage in stages if stage != WHOLE]
        self._rows = {
            stage: slice(turn, None, len(puzzles)) if in_turns else slice(None) for turn, stage in enumerate(puzzles)
        }
        self._inputs = _Inputs(config)
        weights = loss_weights(network, config)
        self._weights = torch.tensor([weights[stage] for stage in stages], device=world.device)
        self._loss = _ClassLoss(config, world)
        self._embed = compiled(network.regions(), self._look) if config.train.compile else self._look

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """For each stage the logits [b, K] of its rows' puzzles; of whole images what `Whole` holds, and beside it what
        auxiliaries look at."""
        return self._embed(batch)

    def _look(self, batch: Batch) -> tuple[Tensor, ...]:
        network, images = self._network(), self._inputs.images(batch)
        embeddings: list[Tensor] = []
        for stage in self.stages:
            if stage == WHOLE:
                assert images is not None
                whole = network.whole(images)
                embeddings += whole
                for auxiliary, draws in zip(self._auxiliaries, self._draws(batch, images.device), strict=True):
                    embeddings += auxiliary.embed(network, images, whole, draws)
            else:
                rows = self._rows[stage]
                embeddings += network.stage_logits(self._inputs.puzzles(batch, images, stage, rows), (stage,))
        return tuple(embeddings)

    def compare(self, embeddings: tuple[Tensor, ...], batch: Batch, *, log: bool) -> Output:
        left, targets = list(embeddings), self._inputs.targets(batch)
        losses, logs = [], {}
        for stage in self.stages:
            if stage == WHOLE:
                whole = Whole(*left[:3])
                losses.append(self._of_whole(whole, tuple(left[3:]), batch, targets))
                logits, rows = whole.logits, slice(None)
            else:
                logits, rows = left.pop(0), self._rows[stage]
                losses.append(self._loss(logits, targets[rows]))
            logs[f"loss_{stage}"] = losses[-1].detach()
            labels = targets[rows] if targets.ndim == 1 else targets[rows].argmax(dim=1)
            logs[f"accuracy_{stage}"] = (logits.detach().argmax(dim=1) == labels).float().mean()
        return Output((torch.stack(losses) * self._weights).sum(), logs)

    def _of_whole(self, whole: Whole, others: tuple[Tensor, ...], batch: Batch, targets: Tensor) -> Tensor:
        loss = self._loss(whole.logits, targets)
        for auxiliary, draws in zip(self._auxiliaries, self._draws(batch, targets.device), strict=True):
            own, others = others[: auxiliary.num_embeddings], others[auxiliary.num_embeddings :]
            loss = auxiliary.add_to(loss, whole, own, targets, draws, self._loss)
        return loss

    def _draws(self, batch: Batch, device: torch.device) -> list[Tensor]:
        return split_draws(self._auxiliaries, batch, device)


class _Inputs:
    """What networks are shown of a batch, and what they are to say: as the graph made them, or mixed."""

    def __init__(self, config: Config) -> None:
        supervised = config.supervised
        self._mix = {"none": None, "mixup": mixup, "cutmix": cutmix}[supervised.mix]
        self._alpha, self._num_classes, self._grids = supervised.mix_alpha, len(supervised.classes), config.model.grids
        sizes = [DRAWS, *(grid * grid for grid in self._grids)]
        self.draws = sum(sizes) if self._mix else 0
        self._ends = np.cumsum(sizes)

    def images(self, batch: Batch) -> Tensor | None:
        """Whole images [b, C, S, S]; None where an update is shown puzzles alone and nothing is mixed."""
        return batch.puzzle_view if self._mix is None else self._mixed(batch).images

    def targets(self, batch: Batch) -> Tensor:
        """int64 [b], or shares of classes [b, K]."""
        assert batch.labels is not None
        return batch.labels if self._mix is None else self._mixed(batch).targets

    def puzzles(self, batch: Batch, images: Tensor | None, tap: Any, rows: slice) -> Tensor:
        """Some rows' puzzles for the head of a tap: those that the graph has cut, or cut here of what was mixed."""
        if self._mix is None:
            return made(batch.puzzles[tap])[rows]
        assert images is not None
        assert batch.draws is not None
        draws = batch.draws[rows, self._ends[tap] : self._ends[tap + 1]]
        grid = self._grids[tap]
        return jigsaw(images[rows], random_permutations(on_device(draws.copy(), images.device), grid), grid)

    def _mixed(self, batch: Batch) -> Mixed:
        assert self._mix is not None
        assert batch.labels is not None
        assert batch.draws is not None
        return self._mix(
            made(batch.puzzle_view), batch.labels, batch.draws, alpha=self._alpha, num_classes=self._num_classes
        )


class Supervised(Objective):
    """The classifiers of `config.train.heads`, or one on the backbone, under a schedule."""

    def __init__(self, model: ClassifyingNetwork, config: Config, world: World) -> None:
        self.model = model
        heads: tuple[Stage, ...] = (WHOLE,) if isinstance(model, PlainClassifier) else config.train.heads
        inputs = _Inputs(config)
        is_mixed = inputs.draws > 0
        # puzzles of mixed images are cut after the graph
        grids = tuple(0 if is_mixed or tap not in heads else grid for tap, grid in enumerate(config.model.grids))
        draws = inputs.draws + sum(auxiliary.draws for auxiliary in auxiliaries_of(model))
        self.needs = Needs(anchor=False, view=WHOLE in heads or is_mixed, grids=grids, labels=True, draws=draws)
        is_joint = config.schedule == "joint"
        groups = [heads] if is_joint else [(head,) for head in heads]
        self.updates = [ClassifyUpdate(model, stages, config, world, in_turns=is_joint) for stages in groups]
        of_stage = loss_weights(model, config)
        self.weights = {f"loss_{head}": of_stage[head] for head in heads}
        decay = config.optim.ema_decay
        self._average = WeightAverage(model, decay, shared=(world.group,)) if decay else None
        self._steps, self._batch_size = 0, config.train.batch_size
        self._num_samples = max(1, sum(config.supervised.class_counts))

    @property
    def scored(self) -> nn.Module:
        return self._average.network if self._average else self.model

    def after_step(self, progress: float) -> None:
        if self._average:
            self._average.update()
        shown, self._steps = self._steps * self._batch_size, self._steps + 1
        if shown // self._num_samples < self._steps * self._batch_size // self._num_samples:
            for auxiliary in auxiliaries_of(self.model):
                auxiliary.after_epoch()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps} | (self._average.state_dict() if self._average else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
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
    puzzles = sum(head != WHOLE for head in config.train.heads)
    rows = config.train.batch_size // (world.size * config.train.accumulate)
    if config.objective.endswith(".joint") and rows < 2 * puzzles:
        raise UserError(
            f"train.batch_size = {config.train.batch_size}: supervised.joint shows each of {puzzles} heads a part of a"
            f" rank's micro-batch, two images or more: at least {2 * puzzles * world.size * config.train.accumulate}"
        )
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
    network.auxiliaries = nn.ModuleList(build_auxiliaries(network, config, world))
    if len(network.auxiliaries) and not (is_plain or WHOLE in config.train.heads):
        raise UserError("train.heads: what supervised.* adds to the loss looks at whole images: add all, the last head")
    if starts_from_file:
        load_start(network, backbone, weights, config.model, new=NEW)
    return Supervised(place_model(network, config, world), config, world)


NEW = ("classifier", "auxiliaries")
"""What names of tensors begin with that no pretraining knows."""


def loss_weights(network: ClassifyingNetwork, config: Config) -> dict[Stage, float]:
    """By stage; of a plain classifier the loss is the cross-entropy itself."""
    if isinstance(network, PlainClassifier):
        return {WHOLE: 1.0}
    return dict(zip(STAGES, config.loss.weights, strict=True))


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
