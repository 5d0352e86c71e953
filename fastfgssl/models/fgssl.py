"""The hierarchical network: a backbone, a block and a head on each of its last three stages, and one head on all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, overload

import torch
from torch import nn

from fastfgssl.config.schema import STAGES, ModelConfig, Stage
from fastfgssl.models.backbone import NUM_TAPS, Backbone, build_backbone
from fastfgssl.models.heads import EmbeddingHead, HierarchicalBlock
from fastfgssl.models.network import Network


class FGSSL(Network):
    """Embeddings of images at four levels: stage 0, 1 and 2 (fine to coarse) and "all".

    B images, P = block_dim, F = embedding_dim.
    """

    def __init__(self, backbone: Backbone, *, block_dim: int, embedding_dim: int, light_blocks: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.blocks = nn.ModuleList(
            HierarchicalBlock(channels, embedding_dim, block_dim, light=light_blocks)
            for channels in backbone.tap_channels
        )
        pooled = [block_dim] * NUM_TAPS + [NUM_TAPS * block_dim]
        self.heads = nn.ModuleList(EmbeddingHead(length, embedding_dim) for length in pooled)

    @overload
    def forward(self, images: torch.Tensor, stage: Stage) -> torch.Tensor: ...
    @overload
    def forward(self, images: torch.Tensor, stage: tuple[Stage, ...]) -> tuple[torch.Tensor, ...]: ...
    def forward(self, images, stage):
        """Embeddings [B, F] of images [B, C, H, W] at one stage, or a tuple of them for a tuple of stages.

        Runs the backbone once, no deeper than the deepest stage asked for, and only the blocks and heads asked for.
        """
        if not isinstance(stage, tuple):
            return self.forward(images, (stage,))[0]
        pooled = self.pooled(images, stage)
        return tuple(self.heads[STAGES.index(one)](pooled[one]) for one in stage)

    def pooled(self, images: torch.Tensor, stages: Iterable[Stage] = STAGES) -> dict[Stage, torch.Tensor]:
        """What the heads of `stages` are given: [B, P] a stage, [B, 3 P] for "all"; the features that are evaluated."""
        stages = tuple(stages)
        taps = self.backbone(images, deepest_tap(stages))
        of_tap: dict[Any, torch.Tensor] = {
            tap: self.blocks[tap](taps[tap]) for tap in range(NUM_TAPS) if tap in stages or "all" in stages
        }
        if "all" in stages:
            return {**of_tap, "all": torch.cat([of_tap[tap] for tap in range(NUM_TAPS)], dim=1)}
        return of_tap

    def features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """`head 0` to `head 2`, the pooled vectors of the blocks [B, P]; and `backbone`, as Barlow Twins is scored."""
        taps = self.backbone(images)
        pooled = {f"head {tap}": block(taps[tap]) for tap, block in enumerate(self.blocks)}
        return pooled | {"backbone": taps[-1].mean(dim=(2, 3))}

    def regions(self) -> list[nn.Module]:
        """What torch.compile takes by itself; see `Backbone.regions`."""
        return [*self.backbone.regions(), *self.blocks, *self.heads]

    def modules_of(self, stages: tuple[Stage, ...]) -> list[nn.Module]:
        """Modules whose parameters are exactly those that a loss of `stages` has gradients for: what it trains."""
        taps: list[Any] = list(range(NUM_TAPS) if "all" in stages else stages)
        heads = [self.heads[STAGES.index(stage)] for stage in stages]
        return [*self.backbone.modules_of(taps), *(self.blocks[tap] for tap in taps), *heads]


def deepest_tap(stages: Iterable[Stage]) -> int:
    """The deepest tap that any of `stages` looks at."""
    return max(NUM_TAPS - 1 if stage == "all" else stage for stage in stages)


def build_model(config: ModelConfig, image_size: int | None = None) -> FGSSL:
    """The network that `config` describes, with its initial weights.

    image_size: side of the images in pixels, for backbones that are built for one size; None takes their own. Draws
    from torch's global generator: seed it before. `UserError` for a backbone or weights that cannot be had.
    """
    return FGSSL(
        build_backbone(config, image_size),
        block_dim=config.block_dim,
        embedding_dim=config.embedding_dim,
        light_blocks=config.block == "light",
    )
