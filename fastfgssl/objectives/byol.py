"""BYOL (arXiv 2006.07733): one network predicts what its moving average, the target, makes of the other view.

The target's weights are the average, and nothing else trains them. Its batch norms normalise by the batch, as those of
the network do; their running statistics are its own, and nothing reads them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch
from fastfgssl.loss.cosine import negative_cosine
from fastfgssl.models.projected import Perceptron, Projected
from fastfgssl.objectives.base import Output, compiled, place_model
from fastfgssl.objectives.two_views import TwoViews, TwoViewsUpdate, build_network
from fastfgssl.runtime.distributed import World

PROJECTOR = (4096, 256)
PREDICTOR = 4096


class BYOLUpdate(TwoViewsUpdate):
    """target: projections of images, by no module of the update's own: it does not train them."""

    def __init__(self, network: Projected, target: Callable[[Tensor], Tensor], config: Config, world: World) -> None:
        super().__init__(network, config, world)
        self._predict, self._target = network.predict, target

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """The target's projections [b, E] of both views, then what is predicted from each."""
        with torch.no_grad():
            targets = [self._target(view) for view in self.views(batch)]
        return (*targets, *(self._predict(projection) for projection in super().embed(batch)))

    def loss(self, *embeddings: Tensor) -> Output:
        z1, z2, p1, p2 = embeddings
        # equation 2, of both ways round: squared distances of normalised vectors
        return Output(4 + 2 * (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())), {})


class BYOL(TwoViews):
    def __init__(self, network: Projected, target: Projected, update: BYOLUpdate, config: Config) -> None:
        super().__init__(network, update, config)
        self.target, self._momentum = target, config.baseline.momentum
        averages, online = dict(target.named_parameters()), dict(network.named_parameters())
        self._averages, self._online = tuple(averages.values()), tuple(online[name] for name in averages)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        torch._foreach_lerp_(self._averages, self._online, 1 - target_momentum(self._momentum, progress))

    def state_dict(self) -> dict[str, Any]:
        return {"target": self.target.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.target.load_state_dict(state["target"])


def target_momentum(first: float, progress: float) -> float:
    """What the target keeps of itself, tau: from `first` along a cosine to 1, where the run ends (section 3.2)."""
    return 1 - (1 - first) * (math.cos(math.pi * progress) + 1) / 2


def build(config: Config, world: World, *, fresh: bool) -> BYOL:
    """Draws initial weights from torch's global generator: seed it before."""
    network = build_network(config, fresh=fresh, projector=PROJECTOR, predictor=PREDICTOR)
    target = copy.deepcopy(network)
    target.predictor = Perceptron(target.dim, ())
    network, target = (place_model(each, config, world) for each in (network, target.requires_grad_(False)))
    project = compiled(target.regions(), target.forward) if config.train.compile else target.forward
    return BYOL(network, target, BYOLUpdate(network, project, config, world), config)
