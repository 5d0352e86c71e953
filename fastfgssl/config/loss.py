"""The section `loss`: the cross-correlation loss of each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastfgssl.config.section import Section, require


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    section = "loss"

    form: Literal["barlow", "official"] = "barlow"
    """barlow: on-diagonal + lambd * off-diagonal terms; official: lambd^2 * squared distance to the identity."""
    lambd: float = 0.0051
    """Weight lambda of the redundancy term."""
    algorithm: Literal["auto", "direct", "gram"] = "auto"
    """direct forms the D x D matrix in slabs, gram two N x N ones; auto takes the cheaper."""
    cache: bool = False
    """One loss over all micro-batches of train.accumulate, as of one big batch, for a second forward pass."""
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 2.0)
    """Weight of the loss of heads 0, 1, 2 and all."""

    def _check(self) -> None:
        self._require_positive("lambd")
        require(len(self.weights) == 4, "loss.weights", self.weights, "four numbers: heads 0, 1, 2 and all")
        require(min(self.weights) > 0, "loss.weights", self.weights, "greater than 0 each")
