"""VICReg (arXiv 2105.04906): two views agree, and each feature varies and correlates with no other, view by view."""

from __future__ import annotations

from torch import Tensor

from fastfgssl.config.schema import Config
from fastfgssl.loss.vicreg import vicreg_terms
from fastfgssl.loss.whole_batch import gather_traffic
from fastfgssl.models.projected import Projected
from fastfgssl.objectives.base import Output
from fastfgssl.objectives.two_views import TwoViews, TwoViewsUpdate, build_two_views
from fastfgssl.runtime.collectives import Traffic
from fastfgssl.runtime.distributed import World

PROJECTOR = (8192, 8192, 8192)
"""The paper calls it the expander."""


class VICRegUpdate(TwoViewsUpdate):
    def __init__(self, network: Projected, config: Config, world: World) -> None:
        super().__init__(network, config, world)
        self._weights = config.baseline.weights

    def loss(self, *embeddings: Tensor) -> Output:
        first, second = embeddings
        loss, *terms = vicreg_terms(first, second, weights=self._weights, group=self._group)
        names = ("invariance", "variance", "covariance")
        return Output(loss, {name: term.detach() for name, term in zip(names, terms, strict=True)})

    def traffic(self, rows: int, *, element_size: int) -> Traffic:
        return gather_traffic(rows, self.dim, element_size)


def build(config: Config, world: World, *, fresh: bool) -> TwoViews:
    """Draws initial weights from torch's global generator: seed it before."""
    return build_two_views(VICRegUpdate, config, world, fresh=fresh, projector=PROJECTOR)
