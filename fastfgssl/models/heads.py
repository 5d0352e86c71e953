"""What stands on each tap: the hierarchical block and the embedding head (METHOD.md's table; PMG, arXiv 2003.03836)."""

from __future__ import annotations

import torch
from torch import nn


class HierarchicalBlock(nn.Module):
    """conv 1x1 to `hidden`, conv 3x3 to `out`, each with batch norm and ReLU, then the global maximum.

    [B, C, H, W] of any H and W to [B, out]. light: the 3x3 convolution is split into one of each channel by itself and
    a 1x1 (MobileNet, arXiv 1704.04861): of a ResNet-50's first block at 224 px, 0.62 GMAC instead of 3.91.
    """

    def __init__(self, channels: int, hidden: int, out: int, *, light: bool = False) -> None:
        super().__init__()
        if light:
            spread = [
                nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, out, kernel_size=1, bias=False),
            ]
        else:
            spread = [nn.Conv2d(hidden, out, kernel_size=3, padding=1, bias=False)]
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            *spread,
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, tap: torch.Tensor) -> torch.Tensor:
        return self.layers(tap).amax(dim=(2, 3))


class EmbeddingHead(nn.Sequential):
    """BN - Linear - BN - ELU: pooled vectors [B, pooled] to embeddings [B, F]."""

    def __init__(self, pooled: int, embedding_dim: int) -> None:
        super().__init__(
            nn.BatchNorm1d(pooled),
            nn.Linear(pooled, embedding_dim),
            nn.BatchNorm1d(embedding_dim),
            nn.ELU(inplace=True),
        )
