"""View matching: does a view of an image find the anchor of the same image among all? Needs no labels."""

from __future__ import annotations

import torch
from torch.nn import functional

_CHUNK = 1024  # rows of the similarity matrix that exist at a time


def matching_accuracy(queries: torch.Tensor, keys: torch.Tensor) -> float:
    """Share of rows whose query [N, D] is nearer, by cosine, to its own key [N, D] than to any other row's.

    A tie with another key counts as a miss, so that features which are all alike score 0.
    """
    queries, keys = functional.normalize(queries, dim=1), functional.normalize(keys, dim=1)
    hits = 0
    for start in range(0, len(queries), _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, len(queries)))
        similarity = queries[rows] @ keys.T
        own = similarity[torch.arange(len(rows)), rows].clone()
        similarity[torch.arange(len(rows)), rows] = -torch.inf
        hits += int((own > similarity.max(dim=1).values).sum())
    return hits / len(queries)
