"""The section `evaluate`: scores of the network while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastfgssl.config.section import Section, require

Metric = Literal["balanced_accuracy", "accuracy", "macro_f1", "macro_auroc", "quadratic_weighted_kappa"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Section):
    section = "evaluate"

    every: int = 0
    """Steps between two scores of the network in training, on the images that score; 0 for none, in fine-tuning once an
    epoch."""
    images: int = 1000
    """Most images that such a score takes in pretraining: view matching, and kNN where there are labels."""
    metric: Metric = "balanced_accuracy"
    """What fine-tuning is to make large on the validation images: its best weights are kept as checkpoints/best.pt."""
    metric_classes: tuple[str, ...] = ()
    """Classes over which macro_auroc is a mean, each against the rest; all where there are none here."""
    patience: int = 0
    """Scores in a row without a new best one after which fine-tuning ends; 0 never ends it early."""

    def _check(self) -> None:
        require(self.every >= 0, "evaluate.every", self.every, "0 or more")
        require(
            not self.metric_classes or self.metric == "macro_auroc",
            "evaluate.metric_classes",
            list(self.metric_classes),
            "left out unless evaluate.metric=macro_auroc",
        )
        require(self.patience >= 0, "evaluate.patience", self.patience, "0 or more")
        require(self.images >= 2, "evaluate.images", self.images, "2 or more")
