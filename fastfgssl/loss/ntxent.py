"""NT-Xent, SimCLR's loss (arXiv 2002.05709): each view finds the other of its image among those of the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional

from fastfgssl.loss.whole_batch import whole_batch


def ntxent_loss(z1: Tensor, z2: Tensor, *, temperature: float = 0.1, group: ProcessGroup | None = None) -> Tensor:
    """The normalised, temperature-scaled cross-entropy: equation 1 of the paper, the mean over all 2 N views.

        l(i, j) = -log(exp(s_ij / temperature) / sum_(k != i) exp(s_ik / temperature)),  s_ij = cos(z_i, z_j)

    z1, z2: embeddings [N, D] of two views, any float dtype, row i of both of the same image. group: with a process
    group, z1 and z2 are this rank's rows, as many on every rank; value and gradient as for `cross_correlation_loss`.
    Each rank makes the whole [2 N, 2 N] matrix: of 4,096 images 268 MB. Returns a float32 scalar (float64 for float64
    embeddings). Raises ValueError for other shapes, or fewer than two rows.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = whole_batch(z1, z2, group)
        z = functional.normalize(torch.cat((z1, z2)), dim=1)
        similarities = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
        other_view = torch.arange(len(z), device=z.device).roll(len(z1))
        return functional.cross_entropy(similarities, other_view)
