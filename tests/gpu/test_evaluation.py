"""What only a GPU can show of evaluation: the same neighbours, matches and probabilities as on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastfgssl.evaluation.knn import knn_probabilities
from fastfgssl.evaluation.linear_probe import linear_probe
from fastfgssl.evaluation.matching import matches
from helpers.gpu import GPU

pytestmark = pytest.mark.gpu


def test_protocols_find_on_the_gpu_what_they_find_on_the_cpu():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (900,), generator=generator)
    train = 2 * torch.eye(12)[labels] + torch.randn(900, 12, generator=generator)
    queries = train[:200] + 0.5 * torch.randn(200, 12, generator=generator)
    groups = np.arange(900) // 2
    found = [
        (
            knn_probabilities(train, labels, queries, num_classes=4, device=device).numpy(),
            linear_probe(train, labels.numpy(), groups, queries, device=device).probabilities,
            matches(queries, train[:200], device=device),
        )
        for device in (torch.device("cpu"), GPU)
    ]
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours.astype(float), theirs.astype(float), atol=0.02)
