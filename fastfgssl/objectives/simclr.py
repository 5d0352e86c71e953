"""SimCLR (arXiv 2002.05709): each view is to be told apart from all others but the second one of its image.

With `baseline.grid` the second view is a puzzle: FG-SSL's pairing under this loss, the natural ablation of its own.
"""

from __future__ import annotations

from torch import Tensor

from fastfgssl.config.schema import Config
from fastfgssl.loss.ntxent import ntxent_loss
from fastfgssl.loss.whole_batch import gather_traffic
from fastfgssl.models.projected import Projected
from fastfgssl.objectives.base import Output
from fastfgssl.objectives.two_views import TwoViews, TwoViewsUpdate, build_two_views
from fastfgssl.runtime.collectives import Traffic
from fastfgssl.runtime.distributed import World

PROJECTOR = (2048, 128)


class SimCLRUpdate(TwoViewsUpdate):
    def __init__(self, network: Projected, config: Config, world: World) -> None:
        super().__init__(network, config, world)
        self._temperature = config.baseline.temperature

    def loss(self, *embeddings: Tensor) -> Output:
        first, second = embeddings
        return Output(ntxent_loss(first, second, temperature=self._temperature, group=self._group), {})

    def traffic(self, rows: int, *, element_size: int) -> Traffic:
        return gather_traffic(rows, self.dim, element_size)


def build(config: Config, world: World, *, fresh: bool) -> TwoViews:
    """Draws initial weights from torch's global generator: seed it before."""
    return build_two_views(SimCLRUpdate, config, world, fresh=fresh, projector=PROJECTOR)
