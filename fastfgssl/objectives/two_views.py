"""What objectives have in common that compare two whole views of an image through one network.

The views are the anchor and the puzzle view, or with `baseline.grid` a puzzle of that: FG-SSL's pairing under another
loss. Each view passes the network by itself, and so has batch statistics of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from fastfgssl.config.schema import Config
from fastfgssl.config.section import require
from fastfgssl.data.batch import Batch, Needs
from fastfgssl.loss import effective_rank
from fastfgssl.models.backbone import build_backbone
from fastfgssl.models.projected import Projected
from fastfgssl.objectives.base import Objective, Output, Update, compiled, made, place_model
from fastfgssl.runtime.distributed import World


class TwoViewsUpdate(Update):
    """Trains all of `network`. A subclass says what the loss is, in `loss`."""

    dim: int

    def __init__(self, network: Projected, config: Config, world: World) -> None:
        super().__init__()
        self.trained = nn.ModuleList(network.trained_modules())
        self.loss_name = f"loss_{config.objective}"
        self._project = compiled(network.regions(), network.forward) if config.train.compile else network.forward
        self.dim, self._group = network.dim, world.group
        self._is_puzzle = config.baseline.grid > 0

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """The projections [b, E] of both views."""
        return tuple(self._project(view) for view in self.views(batch))

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The anchor, and what it is compared with."""
        return made(batch.anchor), made(batch.puzzles[0] if self._is_puzzle else batch.puzzle_view)

    def loss(self, *embeddings: Tensor) -> Output:
        """The loss of what `embed` returns, and what to log beside it."""
        raise NotImplementedError

    def compare(self, embeddings: tuple[Tensor, ...], batch: Batch, *, log: bool) -> Output:
        """Also logs how many directions the first of the embeddings fills: 1 where it has collapsed."""
        loss, logs = self.loss(*embeddings)
        # a decomposition, for which the host waits
        rank = effective_rank(embeddings[0], self._group) if log else loss.new_full((), math.nan)
        return Output(loss, {self.loss_name: loss.detach(), **logs, "effective_rank": rank})


class TwoViews(Objective):
    """One update of each batch, which trains the whole network."""

    def __init__(self, network: Projected, update: TwoViewsUpdate, config: Config) -> None:
        grid, side = config.baseline.grid, config.data.image_size
        require(not grid or side % grid == 0, "baseline.grid", grid, f"a divisor of data.image_size = {side}")
        self.model = network
        self.needs = Needs(anchor=True, view=not grid, grids=(grid,) if grid else ())
        self.updates = [update]
        self.weights = {update.loss_name: 1.0}


def build_two_views(
    update: type[TwoViewsUpdate],
    config: Config,
    world: World,
    *,
    fresh: bool,
    projector: Sequence[int],
    predictor: int | None = None,
    normalised: bool = False,
) -> TwoViews:
    """An objective of which `update` is all; the others as for `build_network`."""
    network = build_network(config, fresh=fresh, projector=projector, predictor=predictor, normalised=normalised)
    network = place_model(network, config, world)
    return TwoViews(network, update(network, config, world), config)


def build_network(
    config: Config,
    *,
    fresh: bool,
    projector: Sequence[int],
    predictor: int | None = None,
    normalised: bool = False,
) -> Projected:
    """The network with the paper's projector and predictor, or those of `baseline`; see `Projected`.

    Draws initial weights from torch's global generator: seed it before.
    """
    model = config.model if fresh else replace(config.model, weights="none")
    return Projected(
        build_backbone(model, config.data.image_size),
        projector=config.baseline.projector or projector,
        predictor=predictor and (config.baseline.predictor or predictor),
        normalised=normalised,
    )
