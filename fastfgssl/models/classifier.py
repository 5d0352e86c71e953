"""Networks that tell classes apart: the hierarchical one with a classifier on each head, and a plain one to compare."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastfgssl.config.schema import STAGES, ModelConfig, Stage
from fastfgssl.models.backbone import NUM_TAPS, Backbone
from fastfgssl.models.fgssl import FGSSL
from fastfgssl.models.network import Network

# B images, K classes, F = embedding_dim


class Whole(NamedTuple):
    """What a network makes of whole images."""

    features: Tensor
    """[B, D], what the last classifier is given."""
    logits: Tensor
    """[B, K], of the last classifier."""
    last_map: Tensor
    """[B, C, h, w], of the backbone."""


class ClassifyingNetwork(Network):
    """A network with classifiers."""

    classes: tuple[str, ...]
    """Their names, in the order of the logits."""
    num_features: int
    """D, the length of `Whole.features`."""
    auxiliaries: nn.ModuleList
    """What helps while training (objectives/auxiliaries.py)."""

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B, K] of images [B, 3, H, W] by classifier: `head 0` to `head 2` and `all`, or `backbone`."""
        raise NotImplementedError

    def modules_of(self, stages: tuple[Stage, ...]) -> list[nn.Module]:
        """Modules whose parameters are exactly those that a loss of the logits of `stages` has gradients for."""
        raise NotImplementedError

    def regions(self) -> list[nn.Module]:
        """What torch.compile takes by itself; see `Backbone.regions`."""
        raise NotImplementedError

    def predict(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, 3, H, W]: the sum of those of all classifiers that were trained."""
        return torch.stack(list(self.logits(images).values())).sum(dim=0)

    def whole(self, images: Tensor) -> Whole:
        """Everything that losses of whole images look at, in one pass."""
        raise NotImplementedError


class Classifier(FGSSL, ClassifyingNetwork):
    """The hierarchical network with a linear classifier on the embedding of each head.

    heads: those that predict; the others' classifiers are there, and are not trained.
    """

    def __init__(
        self, backbone: Backbone, config: ModelConfig, classes: tuple[str, ...], heads: tuple[Stage, ...] = STAGES
    ) -> None:
        super().__init__(
            backbone,
            block_dim=config.block_dim,
            embedding_dim=config.embedding_dim,
            light_blocks=config.block == "light",
        )
        self.classes, self.trained_heads, self.num_features = classes, heads, config.embedding_dim
        self.classifiers = nn.ModuleList(nn.Linear(config.embedding_dim, len(classes)) for _ in STAGES)

    def stage_logits(self, images: Tensor, stages: tuple[Stage, ...]) -> tuple[Tensor, ...]:
        """Logits [B, K] of each of `stages`; runs the backbone once, no deeper than the deepest."""
        embeddings = self(images, stages)
        return tuple(self._classifier(stage)(one) for stage, one in zip(stages, embeddings, strict=True))

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.stage_logits(images, self.trained_heads)
        return {_name(stage): one for stage, one in zip(self.trained_heads, logits, strict=True)}

    def whole(self, images: Tensor) -> Whole:
        taps = self.backbone(images)
        pooled = torch.cat([self.blocks[tap](taps[tap]) for tap in range(NUM_TAPS)], dim=1)
        features = self.heads[STAGES.index("all")](pooled)
        return Whole(features, self._classifier("all")(features), taps[-1])

    def modules_of(self, stages: tuple[Stage, ...]) -> list[nn.Module]:
        return [*super().modules_of(stages), *(self._classifier(stage) for stage in stages)]

    def _classifier(self, stage: Stage) -> nn.Module:
        return self.classifiers[STAGES.index(stage)]


class PlainClassifier(ClassifyingNetwork):
    """Backbone, global average, one linear classifier: what everybody fine-tunes, and the control."""

    def __init__(self, backbone: Backbone, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, classes
        self.num_features = backbone.tap_channels[-1]
        self.classifier = nn.Linear(self.num_features, len(classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, 3, H, W]."""
        return self.whole(images).logits

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        return {"backbone": self(images)}

    def modules_of(self, stages: tuple[Stage, ...]) -> list[nn.Module]:
        """All that the last map comes from."""
        return [*self.backbone.modules_of([NUM_TAPS - 1]), self.classifier]

    def regions(self) -> list[nn.Module]:
        return self.backbone.regions()

    def whole(self, images: Tensor) -> Whole:
        last_map = self.backbone(images)[-1]
        features = last_map.mean(dim=(2, 3))
        return Whole(features, self.classifier(features), last_map)


SUM = "sum"
"""What the sum of all classifiers' logits is called: the network's prediction."""


def logits_of(network: ClassifyingNetwork, images: Tensor, *, flips: bool) -> dict[str, Tensor]:
    """Logits [B, K] by classifier, and their `SUM`; flips: each the mean over the images and their mirror images."""
    mirrors = ((), (2,), (3,), (2, 3)) if flips else ((),)
    shown = [network.logits(images.flip(axes)) for axes in mirrors]
    logits = {name: torch.stack([one[name] for one in shown]).mean(dim=0) for name in shown[0]}
    return logits | {SUM: torch.stack(list(logits.values())).sum(dim=0)}


def _name(stage: Stage) -> str:
    return "all" if stage == "all" else f"head {stage}"
