"""Losses: pure functions of embeddings."""

from fastfgssl.loss.cosine import negative_cosine
from fastfgssl.loss.cross_correlation import (
    CrossCorrelationLoss,
    LossTerms,
    Options,
    cross_correlation_loss,
    cross_correlation_terms,
    loss_traffic,
)
from fastfgssl.loss.ntxent import ntxent_loss
from fastfgssl.loss.rank import effective_rank
from fastfgssl.loss.vicreg import VICRegTerms, vicreg_terms

__all__ = [
    "CrossCorrelationLoss",
    "LossTerms",
    "Options",
    "VICRegTerms",
    "cross_correlation_loss",
    "cross_correlation_terms",
    "effective_rank",
    "loss_traffic",
    "negative_cosine",
    "ntxent_loss",
    "vicreg_terms",
]
