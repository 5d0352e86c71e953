"""k nearest neighbours on frozen features: cosine similarity, votes weighted by exp(similarity / temperature).

Source: Z. Wu et al., arXiv 1805.01978, with the usual k = 20 and temperature 0.07.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from fastfgssl.evaluation.feature_rows import KEYS, QUERIES, Rows, blocks


def knn_predict(
    train: Rows,
    train_labels: torch.Tensor,
    queries: Rows,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> torch.Tensor:
    """Labels int64 [M] of queries [M, D] by the `k` most similar of the training samples [N, D], labels int64 [N].

    Both are read in blocks, the training samples once for each block of queries.
    """
    predictions = []
    for part in blocks(queries, QUERIES):
        similarity, neighbours = _nearest(train, functional.normalize(part.values, dim=1), k)
        votes = torch.zeros(len(part.values), num_classes)
        # relative to the nearest: exp of the similarity itself over- or underflows for small temperatures
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes.scatter_add_(1, train_labels[neighbours], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def _nearest(train: Rows, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities, descending, and numbers of the `k` samples nearest to each of `queries`: [M, k], or fewer."""
    similarity = torch.empty(len(queries), 0)
    neighbours = torch.empty(len(queries), 0, dtype=torch.int64)
    for part in blocks(train, KEYS):
        found, places = (queries @ functional.normalize(part.values, dim=1).T).topk(min(k, len(part.values)), dim=1)
        similarity = torch.cat([similarity, found], dim=1)
        neighbours = torch.cat([neighbours, places + part.rows.start], dim=1)
        similarity, kept = similarity.topk(min(k, similarity.shape[1]), dim=1)
        neighbours = neighbours.gather(1, kept)
    return similarity, neighbours
