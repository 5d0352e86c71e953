"""Cross-entropy of a batch that may be spread over ranks, with what unequal classes need: weights or logit adjustment.

B images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from fastfgssl.loss.batch_mean import batch_mean


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    class_weights: Tensor | None = None,
    log_priors: Tensor | None = None,
    label_smoothing: float = 0.0,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The mean cross-entropy between `logits` and `targets`, in float32 (float64 for float64 logits).

    logits: [B, K], any float dtype; targets: int64 [B], negative for an image without a class, which is ignored; or
    float [B, K], shares of classes, such as mixup makes: an image counts as much as its shares sum up to, so a row of
    zeros is ignored. class_weights, log_priors: [K], see the functions of these names, on the logits' device.
    label_smoothing: in [0, 1), that share of a target is spread evenly over all classes.

    With class weights the mean is torch's for class numbers: the sum of the images' weights is its denominator. Shares
    are treated alike, so that a one-hot row gives what its class number gives (torch divides by B there).

    group: with a process group, the rows are this rank's, as many as it has; value and gradient are those of all ranks'
    rows together, as in `batch_mean`. Returns [], 0 if no image has a class. Raises ValueError naming the argument that
    does not fit; a class number of K or more is torch's error, as anywhere.
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits: must be [B, K] of a float dtype, got {list(logits.shape)} of {logits.dtype}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing = {label_smoothing!r}: must be in [0, 1)")
    B, K = logits.shape
    if len(targets) != B:
        raise ValueError(f"targets: must have as many rows as the logits, {B}, got {len(targets)}")
    for name, of_classes in (("class_weights", class_weights), ("log_priors", log_priors)):
        if of_classes is not None and of_classes.shape != (K,):
            raise ValueError(f"{name}: must be [{K}], one for each class, got {list(of_classes.shape)}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if log_priors is not None:
        logits = logits + log_priors
    shares = soft_targets(targets, K, dtype=logits.dtype)
    smoothed = (1 - label_smoothing) * shares + label_smoothing / K * shares.sum(dim=1, keepdim=True)
    if class_weights is not None:
        shares, smoothed = shares * class_weights, smoothed * class_weights
    losses = -(smoothed * logits.log_softmax(dim=1)).sum(dim=1)
    return batch_mean(losses, shares.sum(dim=1).to(losses.dtype), group=group)


def soft_targets(targets: Tensor, num_classes: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Targets as shares of classes: [B, K], a row of zeros for an image without a class.

    targets: int64 [B], negative for none, or [B, K] shares already. Raises ValueError for another shape or dtype.
    """
    if targets.ndim == 1 and targets.dtype == torch.int64:
        # clamp: one_hot takes no negative number
        return F.one_hot(targets.clamp(min=0), num_classes).to(dtype) * (targets >= 0)[:, None]
    if targets.ndim == 2 and targets.shape[1] == num_classes and targets.is_floating_point():
        return targets.to(dtype)
    raise ValueError(
        f"targets: must be int64 [B], or float [B, {num_classes}], got {list(targets.shape)} of {targets.dtype}"
    )


def class_weights(counts: Tensor | Sequence[int]) -> Tensor:
    """Weights n / (K n_k), under which every class has the same part in the mean, and the images' mean weight is 1.

    counts: [K], training images of each class, n in all. Returns float32 [K]. Raises ValueError if a class has none.
    """
    counts = _require_counts(counts)
    return (counts.sum() / (len(counts) * counts)).float()


def log_priors(counts: Tensor | Sequence[int], *, tau: float = 1.0) -> Tensor:
    """tau log(n_k / n), which is added to logits in training and not afterwards: what is learned is then what tells
    classes apart, not how frequent they are; with tau 1 the plain logits are the best for balanced accuracy.

    counts: as for `class_weights`. Returns float32 [K]. Source: Menon et al., arXiv 2007.07314.
    """
    counts = _require_counts(counts)
    return (tau * (counts / counts.sum()).log()).float()


def _require_counts(counts: Tensor | Sequence[int]) -> Tensor:
    """float64 [K]."""
    counts = torch.as_tensor(counts).double()
    if counts.ndim != 1 or len(counts) == 0:
        raise ValueError(f"counts: must be [K], images of each class, got {list(counts.shape)}")
    if empty := (counts <= 0).nonzero().flatten().tolist():
        raise ValueError(f"counts: class {empty[0]} has no training image")
    return counts
