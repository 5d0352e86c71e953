"""Logistic regression on features that are read in blocks: the optimum of scikit-learn's, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from fastfgssl.evaluation.feature_rows import Block, Rows, blocks

_BLOCK_BYTES = 128 << 20
_KEPT_BYTES = 512 << 20  # features up to this size are standardised once and stay in memory
_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-3  # of the gradient's largest component
_Evaluation = tuple[float, np.ndarray]


class LogisticRegression(NamedTuple):
    """D features, K classes; of two classes one column tells them apart."""

    mean: Tensor  # float32 [D]
    scale: Tensor  # float32 [D]
    weights: Tensor  # float32 [D + 1, K], or [D + 1, 1] for two classes: the last row is the bias
    classes: np.ndarray  # int64 [K]

    def predict(self, features: Rows) -> np.ndarray:
        """Labels int64 [M] of features [M, D]."""
        found = []
        for part in blocks(features, _block_rows(features)):
            logits = (part.values - self.mean).div_(self.scale) @ self.weights[:-1] + self.weights[-1]
            found.append((logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1))
        return self.classes[torch.cat(found).numpy()]


def fit_logistic_regression(
    features: Rows, labels: np.ndarray, strength: float, *, samples: np.ndarray | None = None
) -> LogisticRegression:
    """Fits those `samples` (bool [N]; None: all) of features [N, D] that are asked for; labels int64 [N].

    Features are standardised, classes weighted inversely to their size. Minimises the weighted mean of the logistic
    loss (two classes) or the cross-entropy, plus |weights|^2 / (2 C n) without the bias, by L-BFGS from 0 on, as
    scikit-learn's LogisticRegression(C=strength, class_weight="balanced") does: one pass over the features for each
    evaluation, in float32, sums in float64.
    """
    chosen = torch.ones(len(labels), dtype=torch.bool) if samples is None else torch.from_numpy(samples)
    classes, target = np.unique(labels[chosen.numpy()], return_inverse=True)
    count = len(target)
    balance = torch.from_numpy(count / (len(classes) * np.bincount(target))).float()
    targets = torch.zeros(len(labels), dtype=torch.int64)
    targets[chosen] = torch.from_numpy(target)
    mean, scale = _moments(features, chosen)

    def standardised() -> Iterator[Block]:
        for part in blocks(features, _block_rows(features)):
            yield part._replace(values=part.values[chosen[part.rows]].sub_(mean).div_(scale))

    small = 4 * len(labels) * len(mean) <= _KEPT_BYTES
    held = list(standardised()) if small else None
    columns = 1 if len(classes) == 2 else len(classes)
    penalty = 1 / (strength * count)

    def evaluate(flat: np.ndarray) -> _Evaluation:
        weights = torch.from_numpy(flat).reshape(-1, columns)
        total, gradient = 0.0, torch.zeros_like(weights)
        for part in standardised() if held is None else held:
            truth = targets[part.rows][chosen[part.rows]]
            logits = (part.values @ weights[:-1].float()).double() + weights[-1]
            losses, slopes = _losses(logits, truth)
            total += float(losses @ balance[truth].double())
            slopes = slopes.mul_(balance[truth][:, None])
            gradient[:-1] += (part.values.T @ slopes.float()).double()
            gradient[-1] += slopes.sum(dim=0)
        gradient /= count
        gradient[:-1] += penalty * weights[:-1]
        value = total / count + 0.5 * penalty * float(weights[:-1].square().sum())
        return value, gradient.flatten().numpy()

    return LogisticRegression(mean, scale, _minimise(evaluate, len(mean) + 1, columns), classes)


def _minimise(evaluate: Callable[[np.ndarray], _Evaluation], rows: int, columns: int) -> Tensor:
    options = {"maxiter": _MAX_ITERATIONS, "maxls": 50, "gtol": _TOLERANCE, "ftol": 64 * np.finfo(float).eps}
    found = minimize(evaluate, np.zeros(rows * columns), method="L-BFGS-B", jac=True, options=options)
    return torch.from_numpy(found.x).float().reshape(rows, columns)


def _losses(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each row [B], and its derivative by the logits [B, K], or [B, 1] for two classes."""
    if logits.shape[1] == 1:
        losses = functional.binary_cross_entropy_with_logits(logits[:, 0], truth.double(), reduction="none")
        return losses, logits.sigmoid() - truth[:, None]
    log_shares = logits.log_softmax(dim=1)
    slopes = log_shares.exp()
    slopes[torch.arange(len(truth)), truth] -= 1
    return -log_shares.gather(1, truth[:, None])[:, 0], slopes


def _moments(features: Rows, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, float32 [D]; 1 in the place of the latter where it is constant."""
    count = int(chosen.sum())
    total = squares = torch.zeros(features.shape[1], dtype=torch.float64)
    for part in blocks(features, _block_rows(features)):
        total = total + part.values[chosen[part.rows]].sum(dim=0, dtype=torch.float64)
    mean = total / count
    for part in blocks(features, _block_rows(features)):
        squares = squares + (part.values[chosen[part.rows]] - mean.float()).square_().sum(dim=0, dtype=torch.float64)
    variance = squares / count
    # as large as rounding alone makes it: the feature is constant
    floor = torch.finfo(torch.float32).eps * mean.abs()
    return mean.float(), torch.where(variance.sqrt() <= floor, 1.0, variance.sqrt()).float()


def _block_rows(features: Rows) -> int:
    return max(1, _BLOCK_BYTES // (4 * features.shape[1]))
