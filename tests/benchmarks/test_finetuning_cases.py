"""The cases of fine-tuning in suite `step`: what they stand beside, and that it computes the same."""

from __future__ import annotations

import pytest
import torch

from fastfgssl.benchmarks import step as step_suite
from fastfgssl.benchmarks.finetuning import PASSES, finetuning
from fastfgssl.benchmarks.measure import CheckFailed, Settings, Suite
from fastfgssl.objectives import supervised

CPU = torch.device("cpu")


def test_fine_tuning_stands_beside_passes_that_compute_the_same(monkeypatch):
    settings = Settings(device=CPU, rehearse=True)
    side, batch_size, precision, _, network, _ = step_suite.SIZES["rehearsal"]
    batch, _ = step_suite.make_batches(side, batch_size, CPU, half=False)
    config = step_suite.make_config("joint", network, side, batch_size, precision)

    def rows() -> list:
        return list(finetuning(Suite("step", settings), config, batch, "tiny", 1))

    assert [(row.case, row.baseline, row.limit) for row in rows()] == [
        ("supervised.progressive, tiny", PASSES, PASSES),
        ("supervised.joint, tiny", "supervised.progressive", PASSES),
        ("supervised.plain, tiny", "supervised.progressive", PASSES),
    ]
    right = supervised.cross_entropy
    monkeypatch.setattr(supervised, "cross_entropy", lambda *args, **options: 1.01 * right(*args, **options))
    with pytest.raises(CheckFailed, match=r"supervised.progressive, head 0: relative error"):
        rows()
