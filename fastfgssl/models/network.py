"""What the networks of all objectives have in common."""

from __future__ import annotations

from torch import Tensor, nn

from fastfgssl.models.backbone import Backbone


class Network(nn.Module):
    """A backbone and what is trained on it. A checkpoint of such a network can be scored and taken home."""

    backbone: Backbone

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Features [B, D] of images [B, C, H, W] by name, to be scored: `backbone`, the average of the last map.

        Those of a network whose names begin with `head` are scored side by side too, as `all`.
        """
        return {"backbone": self.backbone(images)[-1].mean(dim=(2, 3))}
