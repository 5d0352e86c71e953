"""The network of objectives that compare whole views: backbone, average pool, projector, and for some a predictor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastfgssl.models.backbone import NUM_TAPS, Backbone
from fastfgssl.models.network import Network


class Projected(Network):
    """Projections of images, and predictions from those. B images, E = dim."""

    dim: int
    """Length of a projection: the projector's last width."""

    def __init__(
        self, backbone: Backbone, *, projector: Sequence[int], predictor: int | None = None, normalised: bool = False
    ) -> None:
        """projector: widths of its layers. predictor: its hidden width; None for none. normalised: see `Perceptron`."""
        super().__init__()
        self.backbone = backbone
        self.dim = projector[-1]
        self.projector = Perceptron(backbone.tap_channels[-1], projector, normalised=normalised)
        self.predictor = Perceptron(self.dim, () if predictor is None else (predictor, self.dim))

    def forward(self, images: Tensor) -> Tensor:
        """Projections [B, E] of images [B, C, H, W]."""
        return self.projector(self.features(images)["backbone"])

    def predict(self, projections: Tensor) -> Tensor:
        """Predictions [B, E]; the projections themselves if there is no predictor."""
        return self.predictor(projections)

    def trained_modules(self) -> list[nn.Module]:
        """Modules whose parameters are exactly those that a loss of predictions has gradients for."""
        return [*self.backbone.modules_of([NUM_TAPS - 1]), self.projector, self.predictor]

    def regions(self) -> list[nn.Module]:
        """What torch.compile takes by itself; see `Backbone.regions`."""
        return [*self.backbone.regions(), self.projector, self.predictor]


class Perceptron(nn.Sequential):
    """Linear layers of some widths, batch norm and ReLU between them; of no widths, the identity. [B, C] to [B, E].

    normalised: with batch norm after the last layer too, without a scale and shift of its own (SimSiam). No layer has a
    bias: a batch norm, or the mean that a loss subtracts, takes it away again; elsewhere the papers' code has none,
    but for the last layer of SimSiam's predictor.
    """

    def __init__(self, channels: int, widths: Sequence[int], *, normalised: bool = False) -> None:
        layers: list[nn.Module] = []
        for width in widths:
            if layers:
                layers += [nn.BatchNorm1d(channels), nn.ReLU(inplace=True)]
            layers.append(nn.Linear(channels, width, bias=False))
            channels = width
        if normalised:
            layers.append(nn.BatchNorm1d(channels, affine=False))
        super().__init__(*layers)
