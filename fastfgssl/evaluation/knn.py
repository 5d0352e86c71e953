"""k nearest neighbours on frozen features: cosine similarity, votes weighted by exp(similarity / temperature).

Source: Z. Wu et al., arXiv 1805.01978, with the usual k = 20 and temperature 0.07.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from fastfgssl.evaluation.feature_rows import CPU, GPU_QUERIES, KEYS, QUERIES, Rows, blocks


def knn_probabilities(
    train: Rows,
    train_labels: torch.Tensor,
    queries: Rows,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device = CPU,
) -> torch.Tensor:
    """Each class's share of the votes of the `k` training samples most similar to each query: float32 [M, num_classes].

    train: [N, D], with labels int64 [N]; queries: [M, D]. Both are read in blocks, the training samples once for each
    block of queries, and compared on `device`; the result is on the CPU.
    """
    shares = []
    labels = train_labels.to(device)
    for part in blocks(queries, QUERIES if device.type == "cpu" else GPU_QUERIES):
        similarity, neighbours = nearest(train, functional.normalize(part.values.to(device), dim=1), k)
        votes = torch.zeros(len(part.values), num_classes, device=device)
        # relative to the nearest: exp of the similarity itself over- or underflows for small temperatures
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes.scatter_add_(1, labels[neighbours], weights)
        shares.append(functional.normalize(votes, p=1, dim=1).cpu())
    return torch.cat(shares)


class Neighbours(NamedTuple):
    similarity: torch.Tensor  # float32 [M, k], descending
    rows: torch.Tensor  # int64 [M, k]


def nearest(train: Rows, queries: torch.Tensor, k: int) -> Neighbours:
    """The `k` rows (or all, of fewer) of [N, D] most similar by cosine to each of `queries` [M, D], of length 1."""
    similarity = torch.empty(len(queries), 0, device=queries.device)
    neighbours = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for part in blocks(train, KEYS):
        keys = functional.normalize(part.values.to(queries.device), dim=1)
        found, places = (queries @ keys.T).topk(min(k, len(keys)), dim=1)
        similarity = torch.cat([similarity, found], dim=1)
        neighbours = torch.cat([neighbours, places + part.rows.start], dim=1)
        similarity, kept = similarity.topk(min(k, similarity.shape[1]), dim=1)
        neighbours = neighbours.gather(1, kept)
    return Neighbours(similarity, neighbours)
