"""View matching: does a view of an image find the anchor of the same image among all? Needs no labels."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from fastfgssl.evaluation.feature_rows import CPU, GPU_QUERIES, KEYS, QUERIES, Rows, blocks


def matching_accuracy(queries: Rows, keys: Rows, *, device: torch.device = CPU) -> float:
    """Share of rows that match; see `matches`."""
    return float(matches(queries, keys, device=device).mean())


def matches(queries: Rows, keys: Rows, *, device: torch.device = CPU) -> np.ndarray:
    """Whether each row's query [N, D] is nearer, by cosine, to its own key [N, D] than to any other row's: bool [N].

    A tie with another key counts as a miss, so that features which are all alike score 0. Both are read in blocks, the
    keys once for each block of queries, and compared on `device`.
    """
    found = []
    for part in blocks(queries, QUERIES if device.type == "cpu" else GPU_QUERIES):
        views = functional.normalize(part.values.to(device), dim=1)
        own = others = torch.full((len(views),), -torch.inf, device=device)
        for block in blocks(keys, KEYS):
            similarity = views @ functional.normalize(block.values.to(device), dim=1).T
            # the diagonal of the whole matrix, as far as it crosses this block
            first, end = max(part.rows.start, block.rows.start), min(part.rows.stop, block.rows.stop)
            rows = torch.arange(first, max(first, end), device=device)
            at = rows - part.rows.start, rows - block.rows.start
            own = own.index_copy(0, at[0], similarity[at])
            similarity[at] = -torch.inf
            others = torch.maximum(others, similarity.amax(dim=1))
        found.append((own > others).cpu().numpy())
    return np.concatenate(found)
