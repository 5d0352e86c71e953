"""Logistic regression on features that are read in blocks: the optimum of scikit-learn's, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from fastfgssl.evaluation.feature_rows import CPU, Block, Rows, blocks

_BLOCK_BYTES = 128 << 20
_KEPT_BYTES = 512 << 20  # features up to this size are standardised once and stay in memory
_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-3  # of the gradient's largest component
_Evaluation = tuple[float, np.ndarray]


class LogisticRegression(NamedTuple):
    """D features, K classes; of two classes one column tells them apart. Its tensors are where it was fitted."""

    mean: Tensor  # float32 [D]
    scale: Tensor  # float32 [D]
    weights: Tensor  # float32 [D + 1, K], or [D + 1, 1] for two classes: the last row is the bias
    classes: np.ndarray  # int64 [K]

    def predict(self, features: Rows) -> np.ndarray:
        """Labels int64 [M] of features [M, D]."""
        return self.classes[self.probabilities(features).argmax(axis=1)]

    def probabilities(self, features: Rows) -> np.ndarray:
        """Of each of `classes`, float64 [M, K], if each were as frequent as the others: so the fit weights them."""
        found = []
        for part in blocks(features, _block_rows(features)):
            values = part.values.to(self.mean.device)
            logits = ((values - self.mean).div_(self.scale) @ self.weights[:-1] + self.weights[-1]).double()
            if logits.shape[1] == 1:
                logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
            found.append(logits.softmax(dim=1).cpu().numpy())
        return np.concatenate(found)


def fit_logistic_regression(
    features: Rows,
    labels: np.ndarray,
    strength: float,
    *,
    samples: np.ndarray | None = None,
    device: torch.device = CPU,
) -> LogisticRegression:
    """Fits those `samples` (bool [N]; None: all) of features [N, D] that are asked for; labels int64 [N].

    Features are standardised, classes weighted inversely to their size. Minimises the weighted mean of the logistic
    loss (two classes) or the cross-entropy, plus |weights|^2 / (2 C n) without the bias, by L-BFGS from 0 on, as
    scikit-learn's LogisticRegression(C=strength, class_weight="balanced") does: one pass over the features for each
    evaluation on `device`, in float32, sums in float64.
    """
    picked = np.ones(len(labels), bool) if samples is None else samples
    classes, target = np.unique(labels[picked], return_inverse=True)
    count = len(target)
    balance = torch.from_numpy(count / (len(classes) * np.bincount(target))).float().to(device)
    chosen = torch.from_numpy(picked).to(device)
    targets = torch.zeros(len(labels), dtype=torch.int64, device=device)
    targets[chosen] = torch.from_numpy(target).to(device)
    mean, scale = _moments(features, chosen)

    def standardised() -> Iterator[Block]:
        for part in blocks(features, _block_rows(features)):
            yield part._replace(values=part.values.to(device)[chosen[part.rows]].sub_(mean).div_(scale))

    small = 4 * len(labels) * len(mean) <= _kept_bytes(device)
    held = list(standardised()) if small else None
    columns = 1 if len(classes) == 2 else len(classes)
    penalty = 1 / (strength * count)

    def evaluate(flat: np.ndarray) -> _Evaluation:
        weights = torch.from_numpy(flat).to(device).reshape(-1, columns)
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
        return value, gradient.flatten().cpu().numpy()

    return LogisticRegression(mean, scale, _minimise(evaluate, len(mean) + 1, columns).to(device), classes)


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
    slopes[torch.arange(len(truth), device=truth.device), truth] -= 1
    return -log_shares.gather(1, truth[:, None])[:, 0], slopes


def _moments(features: Rows, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, float32 [D]; 1 in the place of the latter where it is constant."""
    count, device = int(chosen.sum()), chosen.device
    total = squares = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    for part in blocks(features, _block_rows(features)):
        total = total + part.values.to(device)[chosen[part.rows]].sum(dim=0, dtype=torch.float64)
    mean = total / count
    for part in blocks(features, _block_rows(features)):
        distance = part.values.to(device)[chosen[part.rows]] - mean.float()
        squares = squares + distance.square_().sum(dim=0, dtype=torch.float64)
    variance = squares / count
    # as large as rounding alone makes it: the feature is constant
    floor = torch.finfo(torch.float32).eps * mean.abs()
    return mean.float(), torch.where(variance.sqrt() <= floor, 1.0, variance.sqrt()).float()


def _kept_bytes(device: torch.device) -> int:
    return _KEPT_BYTES if device.type == "cpu" else torch.cuda.mem_get_info(device)[0] // 2


def _block_rows(features: Rows) -> int:
    return max(1, _BLOCK_BYTES // (4 * features.shape[1]))
