"""Fine-grained self-supervised learning (arXiv 2308.05770): puzzles of a view meet the anchor, head by head.

Fine puzzles at the first head, coarse ones at the third, the whole view at the head that sees all stages; at each the
cross-correlation of the two embeddings is drawn to the identity. The two schedules differ in this alone: `progressive`
makes an update for each head, finest first, `joint` one for all.

Under data parallelism each update has a DistributedDataParallel of its own, over just the parameters that it trains:
its reducer knows beforehand which gradients will come. One wrapper around the whole network would have to search each
graph for unused parameters (`find_unused_parameters`) and would still send their zeros: for a ResNet-50 with F = 512,
171 million numbers a batch in `progressive`, where the four wrappers send 92 million. The price is memory: their
buckets take 369 MB, where one wrapper, as in `joint`, takes 171 MB.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fastfgssl.config.schema import STAGES, Config, Stage
from fastfgssl.data.batch import Batch, Needs
from fastfgssl.loss import Options, cross_correlation_terms, effective_rank, loss_traffic
from fastfgssl.models import FGSSL, build_model
from fastfgssl.objectives.base import Objective, Output, Update, compiled, made, place_model
from fastfgssl.runtime.collectives import Traffic
from fastfgssl.runtime.distributed import World


class HeadsUpdate(Update):
    """Trains the heads `stages`, and the backbone as deep as they look."""

    dim: int

    def __init__(self, model: FGSSL, stages: tuple[Stage, ...], config: Config, world: World) -> None:
        super().__init__()
        self.trained = nn.ModuleList(model.modules_of(stages))
        self.stages = stages
        self._forward = compiled(model.regions(), model.forward) if config.train.compile else model.forward
        self.dim, loss = config.model.embedding_dim, config.loss
        self._options = Options(lambd=loss.lambd, form=loss.form, algorithm=loss.algorithm)
        weights = dict(zip(STAGES, config.loss.weights, strict=True))
        self._weights = torch.tensor([weights[stage] for stage in stages], device=world.device)
        self._group = world.group

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """For each stage the embeddings [b, F] of its puzzle and of the anchor."""
        anchors = self._forward(made(batch.anchor), self.stages)
        # a puzzle's call is the same as the anchor's where there is one stage
        puzzles = [self._forward(_shown(batch, stage), (stage,))[0] for stage in self.stages]
        return tuple(embedding for pair in zip(puzzles, anchors, strict=True) for embedding in pair)

    def compare(self, embeddings: tuple[Tensor, ...], batch: Batch, *, log: bool) -> Output:
        losses, logs = [], {}
        for stage, puzzle, anchor in zip(self.stages, embeddings[::2], embeddings[1::2], strict=True):
            terms = cross_correlation_terms(
                puzzle,
                anchor,
                self._options,
                group=self._group,
                check_ranks=False,  # the loader gives every rank as many images
            )
            losses.append(terms.loss)
            logs[f"loss_{stage}"] = terms.loss.detach()
            logs[f"on_diagonal_{stage}"] = terms.on_diagonal
            logs[f"off_diagonal_{stage}"] = terms.off_diagonal
            logs[f"dead_dimensions_{stage}"] = terms.dead_dimensions
            # a decomposition, for which the host waits
            rank = effective_rank(anchor, self._group) if log else terms.loss.new_full((), float("nan"))
            logs[f"effective_rank_{stage}"] = rank
        return Output((torch.stack(losses) * self._weights).sum(), logs)

    def traffic(self, rows: int, *, element_size: int) -> Traffic:
        of_head = loss_traffic(rows, self.dim, element_size)
        return Traffic(*(len(self.stages) * size for size in of_head))


class FineGrained(Objective):
    """The method: `config.train.heads` under `config.schedule`."""

    def __init__(self, model: FGSSL, config: Config, world: World) -> None:
        heads = config.train.heads
        self.model = model
        # of puzzles that no head looks at, none is made
        grids = tuple(grid if tap in heads else 0 for tap, grid in enumerate(config.model.grids))
        self.needs = Needs(anchor=True, view="all" in heads, grids=grids)
        groups = [heads] if config.schedule == "joint" else [(head,) for head in heads]
        self.updates = [HeadsUpdate(model, stages, config, world) for stages in groups]
        of_stage = dict(zip(STAGES, config.loss.weights, strict=True))
        self.weights = {f"loss_{head}": of_stage[head] for head in heads}


def build(config: Config, world: World, *, fresh: bool) -> FineGrained:
    """Draws initial weights from torch's global generator: seed it before."""
    model = build_model(config.model if fresh else replace(config.model, weights="none"), config.data.image_size)
    return FineGrained(place_model(model, config, world), config, world)


def _shown(batch: Batch, stage: Stage) -> Tensor:
    """What the anchor is compared with at a stage: its puzzle, or the whole view."""
    return made(batch.puzzle_view if stage == "all" else batch.puzzles[stage])
