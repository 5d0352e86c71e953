"""k nearest neighbours on frozen features: cosine similarity, votes weighted by exp(similarity / temperature).

Source: Z. Wu et al., arXiv 1805.01978, with the usual k = 20 and temperature 0.07.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_CHUNK = 1024


def knn_predict(
    fit: torch.Tensor,
    fit_labels: torch.Tensor,
    queries: torch.Tensor,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> torch.Tensor:
    """Labels int64 [M] of queries [M, D] by the `k` most similar of the fitting samples [N, D], labels int64 [N]."""
    fit = functional.normalize(fit, dim=1)
    predictions = []
    for part in functional.normalize(queries, dim=1).split(_CHUNK):
        similarity, neighbours = (part @ fit.T).topk(min(k, len(fit)), dim=1)
        votes = torch.zeros(len(part), num_classes)
        # relative to the nearest: exp of the similarity itself over- or underflows for small temperatures
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes.scatter_add_(1, fit_labels[neighbours], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)
