"""The section `baseline`: the objectives that FG-SSL is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from fastfgssl.config.section import Section, require


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(Section):
    section = "baseline"

    projector: tuple[int, ...] = ()
    """Widths of the projector's layers, the last that of the embedding; [] takes those of the objective's paper:
    8192, 8192, 8192 (barlow, vicreg), 2048, 128 (simclr), 4096, 256 (byol), 2048, 2048, 2048 (simsiam)."""
    predictor: int = 0
    """Hidden width of the predictor of byol or simsiam; 0 takes that of the paper, 4096 or 512."""
    grid: int = 0
    """Tiles a side of the puzzle that meets the anchor, as in FG-SSL; 0 for the whole view."""
    temperature: float = 0.1
    """Temperature of simclr's similarities."""
    weights: tuple[float, ...] = (25.0, 25.0, 1.0)
    """Weights of vicreg's invariance, variance and covariance."""
    momentum: float = 0.996
    """What byol's target keeps of itself at the first step; it rises to 1 at the last, along a cosine."""

    def _check(self) -> None:
        require(min(self.projector, default=1) >= 1, "baseline.projector", list(self.projector), "at least 1 each")
        require(self.predictor >= 0, "baseline.predictor", self.predictor, "0 or more")
        require(self.grid == 0 or 2 <= self.grid <= 64, "baseline.grid", self.grid, "from 2 to 64, or 0")
        self._require_positive("temperature")
        weights = list(self.weights)
        require(len(weights) == 3, "baseline.weights", weights, "three numbers: invariance, variance, covariance")
        require(min(weights) >= 0 < max(weights), "baseline.weights", weights, "0 or more each, and not all 0")
        require(0 <= self.momentum <= 1, "baseline.momentum", self.momentum, "in [0, 1]")
