"""The section `supervised`: what is learned from labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastfgssl.config.section import Section, require


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(Section):
    section = "supervised"

    classes: tuple[str, ...] = ()
    """Names of the classes; fine-tuning takes them from the archive."""
    class_counts: tuple[int, ...] = ()
    """Training images of each class; fine-tuning counts them."""
    balance: Literal["none", "weights", "sampling", "logits"] = "none"
    """What evens out rare and common classes: weights in the loss, each class shown as often, or logits shifted by the
    logarithm of a class's share while training (arXiv 2007.07314)."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """What is mixed into each image of its neighbour in the batch, before puzzles are cut (arXiv 1710.09412,
    1905.04899)."""
    mix_alpha: float = 1.0
    """Both parameters of the Beta distribution that shares are drawn from."""
    centre_weight: float = 0.0
    """Weight of the squared distance of features to the mean of their class, as 0.001 (DTRG, arXiv 2208.01997)."""
    graph_weight: float = 0.0
    """Weight of what draws similarities of features and class means to those among the means, as 1 (DTRG)."""
    graph_temperature: float = 1.0
    """Temperature of these similarities."""
    destruction_weight: float = 0.0
    """Weight of telling shuffled images from whole ones and where their tiles were, as 1 (DCL, arXiv 2105.08788)."""
    destruction_grid: int = 7
    """Tiles a side of such an image; divides data.image_size."""
    rotation_weight: float = 0.0
    """Share of the loss that goes to telling how an image was turned, as 0.1 (arXiv 2105.08788)."""
    flips: bool = False
    """Whether predictions are means over an image and its mirror images."""

    def _check(self) -> None:
        require(
            len(self.class_counts) in (0, len(self.classes)),
            "supervised.class_counts",
            list(self.class_counts),
            "a number for each of supervised.classes; leave both out",
        )
        require(0 <= self.label_smoothing < 1, "supervised.label_smoothing", self.label_smoothing, "in [0, 1)")
        self._require_positive("mix_alpha", "graph_temperature")
        for name in ("centre_weight", "graph_weight", "destruction_weight"):
            require(getattr(self, name) >= 0, f"supervised.{name}", getattr(self, name), "0 or more")
        require(0 <= self.rotation_weight < 1, "supervised.rotation_weight", self.rotation_weight, "in [0, 1)")
        require(self.destruction_grid >= 2, "supervised.destruction_grid", self.destruction_grid, "2 or more")
        require(
            self.mix == "none" or not (self.destruction_weight or self.rotation_weight),
            "supervised.mix",
            self.mix,
            "none with supervised.destruction_weight or supervised.rotation_weight",
        )
