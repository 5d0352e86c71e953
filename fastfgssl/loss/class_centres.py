"""Class centres and the graph of their likeness, towards which features are drawn: DTRG (arXiv 2208.01997).

A centre c_k is the mean of the features of class k over an epoch, and serves in the next one. G_jk = cos(c_j, c_k).

    centre  mean_i |f_i - c_y|^2
    graph   mean_i sum_j (exp(G_yj / tau) - exp(cos(f_i, c_j) / tau))^2

Of mixed targets each class has its share in both, and in the centres. All in float64: the products are small, and TF32
would round centres to 10 bits. B images, F numbers of a feature, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastfgssl.loss.batch_mean import batch_mean
from fastfgssl.loss.classification import soft_targets
from fastfgssl.runtime.collectives import Traffic, sum_over_ranks


class CentreTerms(NamedTuple):
    """Both [], without their weights, float32 (float64 for float64 features)."""

    centre: Tensor
    graph: Tensor


class ClassCentres(nn.Module):
    """The centres of `num_classes` classes in a space of `dim` numbers, and the losses that they make.

    For each training batch: the losses, then `accumulate`; at an epoch's end `finish_epoch`. Both losses are 0 until
    the first epoch is finished. There are no parameters. With a process group the rows are each rank's own, as many as
    it has; sums are added up over ranks batch by batch, K (F + 1) numbers of float64, so that the state of any rank is
    that of all: a checkpoint of the first rank in the middle of an epoch goes on exactly, on any number of ranks.
    """

    centres: Tensor
    """float64 [K, F]; zeros for a class that was never seen."""
    sums: Tensor
    """float64 [K, F + 1]: of this epoch's features of each class, and how many there were."""
    epochs: Tensor
    """int64 []: those finished."""

    def __init__(self, num_classes: int, dim: int, *, group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(num_classes, dim, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(num_classes, dim + 1, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self._group = group

    def forward(self, features: Tensor, targets: Tensor, *, temperature: float = 1.0) -> CentreTerms:
        """The losses of features [B, F], of any float dtype; targets as of `cross_entropy`; temperature: tau.

        Images without a class do not count. Raises ValueError naming the argument that does not fit.
        """
        shares = self._require(features, targets)
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature!r}: must be greater than 0")
        dtype = torch.promote_types(features.dtype, torch.float32)
        features = features.double()
        has_centres = self.epochs > 0  # stays on the device: the host waits for nothing
        directions = _directions(self.centres)
        likeness = (directions @ directions.T / temperature).exp()  # [K, K]
        of_features = (_directions(features) @ directions.T / temperature).exp()  # [B, K]
        return CentreTerms(
            *(
                (_mean_squared_distance(points, shares, of_classes, self._group) * has_centres).to(dtype)
                for points, of_classes in ((features, self.centres), (of_features, likeness))
            )
        )

    @torch.no_grad()
    def accumulate(self, features: Tensor, targets: Tensor) -> None:
        """Adds a batch to this epoch's sums; on all ranks together."""
        shares = self._require(features, targets)
        sums = shares.T @ nn.functional.pad(features.double(), (0, 1), value=1)
        self.sums += sums if self._group is None else sum_over_ranks(sums, self._group)

    @torch.no_grad()
    def finish_epoch(self) -> None:
        """Makes this epoch's means the centres; a class that it did not show keeps its own."""
        counts = self.sums[:, -1:]
        is_seen = counts > 0
        self.centres.copy_(torch.where(is_seen, self.sums[:, :-1] / torch.where(is_seen, counts, 1), self.centres))
        self.sums.zero_()
        self.epochs += 1

    def traffic(self) -> Traffic:
        """What a rank hands to collectives for a batch: the sums, and a numerator and a denominator of each loss."""
        return Traffic(summed=self.sums.nbytes + 4 * self.sums.itemsize)

    def _require(self, features: Tensor, targets: Tensor) -> Tensor:
        """float64 [B, K], the shares of classes."""
        K, F = self.centres.shape
        if features.ndim != 2 or features.shape[1] != F or not features.is_floating_point():
            raise ValueError(f"features: must be float [B, {F}], got {list(features.shape)} of {features.dtype}")
        if len(targets) != len(features):
            raise ValueError(f"targets: must have as many rows as the features, {len(features)}, got {len(targets)}")
        return soft_targets(targets, K, dtype=torch.float64)


def _directions(rows: Tensor) -> Tensor:
    """Rows of length 1; of a row of zeros they are zeros, and so is its cosine with anything."""
    lengths = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(lengths > 0, lengths, 1)


def _mean_squared_distance(points: Tensor, shares: Tensor, of_classes: Tensor, group: ProcessGroup | None) -> Tensor:
    """mean_i sum_k share_ik |p_i - q_k|^2, for points p [B, D] and q [K, D] of the classes.

    With the mean q of an image's classes it is |p - mean|^2 and how far these lie from it: no [B, K, D] is made.
    """
    weights = shares.sum(dim=1)
    means = shares @ of_classes / torch.where(weights > 0, weights, 1)[:, None]
    spread = shares @ of_classes.square().sum(dim=1) - weights * means.square().sum(dim=1)  # 0 where there is one class
    return batch_mean(weights * (points - means).square().sum(dim=1) + spread, weights, group=group)
