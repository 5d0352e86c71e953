"""Losses: pure functions of embeddings."""

from fastfgssl.loss.cross_correlation import (
    CrossCorrelationLoss,
    LossTerms,
    Options,
    cross_correlation_loss,
    cross_correlation_terms,
    loss_traffic,
)
from fastfgssl.loss.rank import effective_rank

__all__ = [
    "CrossCorrelationLoss",
    "LossTerms",
    "Options",
    "cross_correlation_loss",
    "cross_correlation_terms",
    "effective_rank",
    "loss_traffic",
]
