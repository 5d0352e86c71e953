"""From a batch to optimiser updates: which heads each update trains, their losses and the gradients.

The two schedules differ in this alone: `progressive` makes an update for each head, finest first, `joint` one for all.

Under data parallelism each update has a DistributedDataParallel of its own, over just the parameters that it trains:
its reducer knows beforehand which gradients will come. One wrapper around the whole network would have to search each
graph for unused parameters (`find_unused_parameters`) and would still send their zeros: for a ResNet-50 with F = 512,
171 million numbers a batch in `progressive`, where the four wrappers send 92 million. The price is memory: their
buckets take 369 MB, where one wrapper, as in `joint`, takes 171 MB.

With `train.accumulate` above 1 an update is made of micro-batches. Either each has a loss of its own, over its own rows
on all ranks, and the update follows their mean; or, with `loss.cache`, there is one loss over all rows: a first pass
without gradients makes the embeddings, the loss gives the gradient of each, and a second pass takes them to the weights
micro-batch by micro-batch (GradCache, arXiv 2101.06983). Batch norm sees micro-batches both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.profiler import record_function

from fastfgssl.config.schema import STAGES, Config, Stage, TrainConfig
from fastfgssl.data.batch import Batch
from fastfgssl.loss import cross_correlation_terms, effective_rank
from fastfgssl.models import FGSSL
from fastfgssl.runtime.distributed import World, data_parallel

_AUTOCAST = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TERMS = ("on_diagonal", "off_diagonal", "dead_dimensions", "effective_rank")


class Embeddings(NamedTuple):
    """What one head makes of the two views of a micro-batch: [b, F] each."""

    puzzle: torch.Tensor
    anchor: torch.Tensor


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

    def forward(
        self,
        anchor: torch.Tensor,
        puzzles: Sequence[torch.Tensor],
        *,
        gradients: Sequence[Embeddings] | None = None,
        with_rank: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor:
        """`losses` of the anchors [B, 3, S, S] against one tensor of puzzles [B, 3, S, S] for each stage.

        With `gradients`, those of a loss by each embedding, a scalar instead whose backward has them.
        """
        with record_function("forward"):
            embeddings = self.embed(anchor, puzzles)
        if gradients is None:
            return self.losses(embeddings, with_rank)
        pairs = [pair for head in zip(embeddings, gradients, strict=True) for pair in zip(*head, strict=True)]
        return sum((embedding.to(gradient.dtype) * gradient).sum() for embedding, gradient in pairs)

    def embed(self, anchor: torch.Tensor, puzzles: Sequence[torch.Tensor]) -> list[Embeddings]:
        """The embeddings that each stage compares."""
        anchors = self._embed(anchor, self._stages)
        # a puzzle's call is the same as the anchor's where there is one stage
        return [
            Embeddings(self._embed(puzzle, (stage,))[0], of_anchor)
            for stage, puzzle, of_anchor in zip(self._stages, puzzles, anchors, strict=True)
        ]

    def losses(self, embeddings: Sequence[Embeddings], with_rank: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses [stages] of the whole batch over all ranks, and their terms [stages, 4] in the order of `TERMS`.

        The effective rank, of the anchors' embeddings, is NaN unless it is asked for: it costs a decomposition.
        """
        with record_function("loss"):
            return self._losses(embeddings, with_rank)

    def _losses(self, embeddings: Sequence[Embeddings], with_rank: bool) -> tuple[torch.Tensor, torch.Tensor]:
        losses, terms = [], []
        for head in embeddings:
            loss, *others = cross_correlation_terms(
                *head,
                lambd=self._loss.lambd,
                form=self._loss.form,
                algorithm=self._loss.algorithm,
                group=self._group,
                check_ranks=False,  # the loader gives every rank as many images
            )
            rank = effective_rank(head.anchor, self._group) if with_rank else loss.new_full((), float("nan"))
            losses.append(loss)
            terms.append(torch.stack([*others, rank]))
        return torch.stack(losses), torch.stack(terms)


class Update(NamedTuple):
    """One optimiser update."""

    stages: tuple[Stage, ...]
    """The heads that it trains."""
    weights: torch.Tensor
    """[stages] of their losses."""
    heads: HeadsLoss
    shared: nn.Module
    """`heads` as ranks share it: DistributedDataParallel, or `heads` itself for one rank."""


def plan_updates(model: FGSSL, config: Config, world: World) -> list[Update]:
    """The updates that are made of each batch, in their order."""
    heads = config.train.heads
    groups = [heads] if config.train.schedule == "joint" else [(head,) for head in heads]
    weight_of = dict(zip(STAGES, config.loss.weights, strict=True))
    updates = []
    for stages in groups:
        weights = torch.tensor([weight_of[stage] for stage in stages], device=world.device)
        heads = HeadsLoss(model, stages, config, world)
        shared = data_parallel(heads, world, gradient_dtype=config.train.gradient_dtype)
        updates.append(Update(stages, weights, heads, shared))
    return updates


def accumulate_gradients(
    update: Update, batch: Batch, config: Config, scaler: torch.amp.GradScaler, *, with_rank: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the update's gradients of `batch` to its parameters', scaled by `scaler`.

    Returns losses [stages] and terms [stages, 4] (`HeadsLoss.losses`), detached; of micro-batches with losses of their
    own, the mean.
    """
    train, device = config.train, batch.anchor.device.type
    autocast = torch.autocast(device, dtype=_AUTOCAST[train.precision], enabled=train.precision != "float32")
    parts = micro_batches(batch, update.stages, train)
    cached = config.loss.cache and len(parts) > 1
    if cached:
        with autocast:
            losses, terms, gradients = _gradients_of_embeddings(update, parts, with_rank)
    found = []
    for index, part in enumerate(parts):
        # ranks exchange gradients once an update, with the last micro-batch
        is_exchange = index == len(parts) - 1 or update.shared is update.heads
        with nullcontext() if is_exchange else update.shared.no_sync():
            with autocast:
                if cached:
                    total = update.shared(*part, gradients=gradients[index])
                else:
                    own_losses, own_terms = update.shared(*part, with_rank=with_rank)
                    total = (own_losses * update.weights).sum() / len(parts)
                    found.append((own_losses.detach(), own_terms))
            with record_function("backward"):
                scaler.scale(total).backward()
    if not cached:
        losses, terms = (torch.stack(values).mean(dim=0) for values in zip(*found, strict=True))
    return losses, terms


def _gradients_of_embeddings(
    update: Update, parts: list[MicroBatch], with_rank: bool
) -> tuple[torch.Tensor, torch.Tensor, list[list[Embeddings]]]:
    """Losses and terms of all micro-batches as one batch; the weighted loss's gradient by each part's embeddings."""
    with torch.no_grad(), _kept_buffers(update.heads), record_function("forward"):
        of_parts = [update.heads.embed(*part) for part in parts]
    whole = [
        Embeddings(*(_leaf(torch.cat(views)) for views in zip(*of_head, strict=True)))
        for of_head in zip(*of_parts, strict=True)
    ]
    losses, terms = update.heads.losses(whole, with_rank)
    leaves = [view for head in whole for view in head]
    gradients = torch.autograd.grad((losses * update.weights).sum(), leaves)
    chunks = zip(*(gradient.chunk(len(parts)) for gradient in gradients), strict=True)
    return losses.detach(), terms, [[Embeddings(*pair) for pair in zip(c[::2], c[1::2], strict=True)] for c in chunks]


def _leaf(embeddings: torch.Tensor) -> torch.Tensor:
    """A leaf of at least float32: small gradients would be lost in float16."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)).requires_grad_()


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    """Puts buffers back after the body: a pass that is made twice is to move running averages once."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    for buffer, before in kept:
        buffer.copy_(before)


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
