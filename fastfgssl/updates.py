"""From a batch to optimiser updates: which heads each update trains, and their losses.

The two schedules differ in this alone: `progressive` makes an update for each head, finest first, `joint` one for all.

Under data parallelism each update has a DistributedDataParallel of its own, over just the parameters that it trains:
its reducer knows beforehand which gradients will come. One wrapper around the whole network would have to search each
graph for unused parameters (`find_unused_parameters`) and would still send their zeros: for a ResNet-50 with F = 512,
171 million numbers a batch in `progressive`, where the four wrappers send 92 million. The price is memory: their
buckets take 369 MB, where one wrapper, as in `joint`, takes 171 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from fastfgssl.batch import Batch
from fastfgssl.config import STAGES, Config, Stage, TrainConfig
from fastfgssl.distributed import World, data_parallel
from fastfgssl.loss import cross_correlation_loss
from fastfgssl.models import FGSSL


class HeadsLoss(nn.Module):
    """The losses of some heads for one batch: what one update minimises.

    A module of its own, so that its parameters are those that the update trains and no others.
    """

    def __init__(self, model: FGSSL, stages: tuple[Stage, ...], config: Config, world: World) -> None:
        super().__init__()
        self.trained = nn.ModuleList(model.modules_of(stages))
        self._stages = stages
        self._embed = torch.compile(model.forward, dynamic=False) if config.train.compile else model.forward
        self._loss = config.loss
        self._group = world.group

    def forward(self, anchor: torch.Tensor, puzzles: Sequence[torch.Tensor]) -> torch.Tensor:
        """Losses [stages] of the anchors [B, 3, S, S] against one tensor of puzzles [B, 3, S, S] for each stage."""
        losses = []
        for stage, puzzle, anchor_embedding in zip(
            self._stages, puzzles, self._embed(anchor, self._stages), strict=True
        ):
            loss = cross_correlation_loss(
                self._embed(puzzle, (stage,))[0],  # the same call as the anchor's where there is one stage
                anchor_embedding,
                lambd=self._loss.lambd,
                form=self._loss.form,
                algorithm=self._loss.algorithm,
                group=self._group,
            )
            losses.append(loss)
        return torch.stack(losses)


class Update(NamedTuple):
    """One optimiser update: its heads, the weights of their losses [stages], and their losses as ranks share them."""

    stages: tuple[Stage, ...]
    weights: torch.Tensor
    losses: nn.Module


def plan_updates(model: FGSSL, config: Config, world: World) -> list[Update]:
    """The updates that are made of each batch, in their order."""
    heads = config.train.heads
    groups = [heads] if config.train.schedule == "joint" else [(head,) for head in heads]
    weight_of = dict(zip(STAGES, config.loss.weights, strict=True))
    return [
        Update(
            stages,
            torch.tensor([weight_of[stage] for stage in stages], device=world.device),
            data_parallel(HeadsLoss(model, stages, config, world), world),
        )
        for stages in groups
    ]


class MicroBatch(NamedTuple):
    anchor: torch.Tensor  # [b, 3, S, S]
    puzzles: tuple[torch.Tensor, ...]  # [b, 3, S, S] for each head of the update


def micro_batches(batch: Batch, stages: Sequence[Stage], config: TrainConfig) -> list[MicroBatch]:
    """`batch` in equal parts, with what each of the heads `stages` is shown: its puzzle, or the whole view."""
    layout = memory_format(config)
    shown = [batch.anchor, *(batch.puzzle_view if stage == "all" else batch.puzzles[stage] for stage in stages)]
    parts = zip(*(images.contiguous(memory_format=layout).chunk(config.accumulate) for images in shown), strict=True)
    return [MicroBatch(anchor, tuple(puzzles)) for anchor, *puzzles in parts]


def memory_format(config: TrainConfig) -> torch.memory_format:
    """The layout of images, activations and weights."""
    return torch.channels_last if config.channels_last else torch.contiguous_format
