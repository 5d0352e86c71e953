"""The training loss: the cross-correlation loss of a batch that may be spread over ranks.

The well-known implementations add up the cross-correlation matrix with a collective that autograd does not see, and
train with 1 / world size of the true gradient. Here every rank gathers the embeddings, and its gradient is exactly its
rows' part of the gradient of one process on the whole batch.
"""

from __future__ import annotations

import torch
from torch.distributed import ProcessGroup

from fastfgssl.distributed import gather_rows
from fastfgssl.kernels import cross_correlation


def cross_correlation_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    *,
    lambd: float = 0.0051,
    form: str = "barlow",
    algorithm: str = "auto",
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """How far the cross-correlation matrix of two views' embeddings is from the identity.

    z1, z2: embeddings [N, D] of two views, any float dtype, row i of both of the same image; columns are standardised
    over the batch in float32. form: "barlow" is sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2 (Barlow Twins, arXiv
    2103.03230, equation 1), "official" is lambd^2 ||C - I||_F^2 (the published FG-SSL code). algorithm: "direct"
    forms the D x D matrix, "gram" two N x N ones with the same result, "auto" takes the cheaper. group: with a
    process group, z1 and z2 are this rank's rows, as many on every rank. The value is that of the whole batch on
    every rank; the gradient is world size times the part of this rank's rows, so that the mean over ranks which
    DistributedDataParallel takes is the true gradient.

    Returns a float32 scalar (float64 for float64 input). Raises ValueError naming the argument that does not fit.
    """
    cross_correlation.check_arguments(z1, z2, lambd=lambd, form=form, algorithm=algorithm)
    if group is not None:
        z1, z2 = gather_rows(z1, group), gather_rows(z2, group)
    return cross_correlation.cross_correlation_loss(z1, z2, lambd=lambd, form=form, algorithm=algorithm)
