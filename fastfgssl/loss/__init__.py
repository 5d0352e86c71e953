"""Losses: pure functions of embeddings."""

from fastfgssl.loss.cross_correlation import (
    LossTerms,
    bytes_to_exchange,
    cross_correlation_loss,
    cross_correlation_terms,
    effective_rank,
)

__all__ = ["LossTerms", "bytes_to_exchange", "cross_correlation_loss", "cross_correlation_terms", "effective_rank"]
