"""View matching: does a view of an image find the anchor of the same image among all? Needs no labels."""

from __future__ import annotations

import torch
from torch.nn import functional

from fastfgssl.evaluation.feature_rows import KEYS, QUERIES, Rows, blocks


def matching_accuracy(queries: Rows, keys: Rows) -> float:
    """Share of rows whose query [N, D] is nearer, by cosine, to its own key [N, D] than to any other row's.

    A tie with another key counts as a miss, so that features which are all alike score 0. Both are read in blocks, the
    keys once for each block of queries.
    """
    hits = 0
    for part in blocks(queries, QUERIES):
        views = functional.normalize(part.values, dim=1)
        own = others = torch.full((len(views),), -torch.inf)
        for block in blocks(keys, KEYS):
            similarity = views @ functional.normalize(block.values, dim=1).T
            # the diagonal of the whole matrix, as far as it crosses this block
            first, end = max(part.rows.start, block.rows.start), min(part.rows.stop, block.rows.stop)
            rows = torch.arange(first, max(first, end))
            at = rows - part.rows.start, rows - block.rows.start
            own = own.index_copy(0, at[0], similarity[at])
            similarity[at] = -torch.inf
            others = torch.maximum(others, similarity.amax(dim=1))
        hits += int((own > others).sum())
    return hits / len(queries)
