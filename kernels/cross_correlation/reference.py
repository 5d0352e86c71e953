"""The truth of the cross-correlation loss, as METHOD and paper write it: form the D x D matrix, compare it with I.

N rows of the batch, D features. Source: Barlow Twins (arXiv 2103.03230), equations 1 and 2; `official` is the loss of
the published FG-SSL code (arXiv 2308.05770).
"""

from __future__ import annotations

import torch

STANDARDISE_EPS = 1e-5


def standardise(z_ND: torch.Tensor) -> torch.Tensor:
    """Each column less its mean and divided by its standard deviation, both over the N rows; biased variance."""
    centred_ND = z_ND - z_ND.mean(dim=0)
    return centred_ND * (centred_ND.square().mean(dim=0) + STANDARDISE_EPS).rsqrt()


def cross_correlation_loss_reference(
    z1_ND: torch.Tensor, z2_ND: torch.Tensor, *, lambd: float, form: str
) -> torch.Tensor:
    """The loss of standardised embeddings z1, z2 [N, D] in their own dtype; gradients by autograd.

    barlow: sum_i (1 - C_ii)^2 + lambd * sum_{i != j} C_ij^2; official: lambd^2 * ||C - I||_F^2; C = z1' z2 / N.
    """
    corr_DD = z1_ND.T @ z2_ND / len(z1_ND)
    diagonal_D = corr_DD.diagonal()
    if form == "official":
        return lambd**2 * (corr_DD - torch.eye(len(corr_DD), dtype=corr_DD.dtype, device=corr_DD.device)).square().sum()
    off_diagonal = corr_DD.square().sum() - diagonal_D.square().sum()
    return (1 - diagonal_D).square().sum() + lambd * off_diagonal
