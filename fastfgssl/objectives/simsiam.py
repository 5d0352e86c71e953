"""SimSiam (arXiv 2011.10566): the projection of each view is predicted from the other, and taken as given."""

from __future__ import annotations

from torch import Tensor

from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch
from fastfgssl.loss.cosine import negative_cosine
from fastfgssl.models.projected import Projected
from fastfgssl.objectives.base import Output
from fastfgssl.objectives.two_views import TwoViews, TwoViewsUpdate, build_two_views
from fastfgssl.runtime.distributed import World

PROJECTOR = (2048, 2048, 2048)
PREDICTOR = 512


class SimSiamUpdate(TwoViewsUpdate):
    def __init__(self, network: Projected, config: Config, world: World) -> None:
        super().__init__(network, config, world)
        self._predict = network.predict

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """The projections [b, E] of both views, then what is predicted from each."""
        projections = super().embed(batch)
        return (*projections, *(self._predict(projection) for projection in projections))

    def loss(self, *embeddings: Tensor) -> Output:
        z1, z2, p1, p2 = embeddings
        # stopgrad is what keeps it from collapsing
        return Output((negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2, {})


def build(config: Config, world: World, *, fresh: bool) -> TwoViews:
    """Draws initial weights from torch's global generator: seed it before."""
    return build_two_views(
        SimSiamUpdate, config, world, fresh=fresh, projector=PROJECTOR, predictor=PREDICTOR, normalised=True
    )
