"""How many directions embeddings fill: what tells that they collapse."""

from __future__ import annotations

import torch
from torch.distributed import ProcessGroup

from fastfgssl.kernels.cross_correlation import Ranks, standardise
from fastfgssl.runtime.collectives import place_in


@torch.no_grad()
def effective_rank(z: torch.Tensor, group: ProcessGroup | None = None, *, max_rows: int = 1024) -> torch.Tensor:
    """How many directions the embeddings fill: exp(entropy of the singular values' shares), 1 if they have collapsed.

    z: [N, D], this rank's rows; columns are standardised first. Taken from the Gram matrix, or Z'Z where that is the
    smaller, of at most `max_rows` rows, the first of each rank, in float64: roots of small eigenvalues show their
    rounding. It costs an eigenvalue decomposition of that size. Returns a float32 scalar, at most min(rows - 1, D); 0
    if all rows are the same, NaN if one is not finite. Source: RankMe, arXiv 2210.02885, equation 1.
    """
    if z.ndim != 2:
        raise ValueError(f"z: must be [N, D], got {list(z.shape)}")
    with torch.autocast(z.device.type, enabled=False):
        if group is not None:
            ranks = Ranks(*place_in(group))
            z = ranks.begin_gather(z[: max(1, max_rows // ranks.size)])()
        z = standardise(z[:max_rows].double())
        gram = z @ z.T if len(z) <= z.shape[1] else z.T @ z
        is_finite = gram.isfinite().all()
        gram = torch.where(is_finite, gram, 0)  # the decomposition would raise an error, and say no more than NaN does
        singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
        total = singular.sum()
        rank = torch.special.entr(singular / total).sum().exp()
        rank = torch.where(total > 0, rank, 0)
        return torch.where(is_finite, rank, torch.nan).float()
