"""Losses: pure functions of embeddings."""

from fastfgssl.loss.cross_correlation import (
    CrossCorrelationLoss,
    LossTerms,
    Options,
    bytes_to_exchange,
    cross_correlation_loss,
    cross_correlation_terms,
)
from fastfgssl.loss.rank import effective_rank

__all__ = [
    "CrossCorrelationLoss",
    "LossTerms",
    "Options",
    "bytes_to_exchange",
    "cross_correlation_loss",
    "cross_correlation_terms",
    "effective_rank",
]
