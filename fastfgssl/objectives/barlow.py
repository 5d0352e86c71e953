"""Barlow Twins (arXiv 2103.03230): the features of two views have the identity for a cross-correlation matrix.

FG-SSL's loss, of whole views alone: what its puzzles and heads are worth is the difference to this.
"""

from __future__ import annotations

from torch import Tensor

from fastfgssl.config.schema import Config
from fastfgssl.loss import Options, cross_correlation_terms, loss_traffic
from fastfgssl.models.projected import Projected
from fastfgssl.objectives.base import Output
from fastfgssl.objectives.two_views import TwoViews, TwoViewsUpdate, build_two_views
from fastfgssl.runtime.collectives import Traffic
from fastfgssl.runtime.distributed import World

PROJECTOR = (8192, 8192, 8192)


class BarlowUpdate(TwoViewsUpdate):
    def __init__(self, network: Projected, config: Config, world: World) -> None:
        super().__init__(network, config, world)
        loss = config.loss
        self._options = Options(lambd=loss.lambd, form=loss.form, algorithm=loss.algorithm)

    def loss(self, *embeddings: Tensor) -> Output:
        first, second = embeddings
        # the loader gives every rank as many images
        terms = cross_correlation_terms(first, second, self._options, group=self._group, check_ranks=False)
        names = ("on_diagonal", "off_diagonal", "dead_dimensions")
        return Output(terms.loss, {name: getattr(terms, name) for name in names})

    def traffic(self, rows: int, *, element_size: int) -> Traffic:
        return loss_traffic(rows, self.dim, element_size)


def build(config: Config, world: World, *, fresh: bool) -> TwoViews:
    """Draws initial weights from torch's global generator: seed it before."""
    return build_two_views(BarlowUpdate, config, world, fresh=fresh, projector=PROJECTOR)
