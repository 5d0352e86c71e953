"""Features of more images than memory holds: what is read in blocks gives what is computed at once."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from fastfgssl.evaluation import knn, logistic_regression, matching
from fastfgssl.evaluation.feature_rows import FeatureRows, SideBySide, blocks
from fastfgssl.evaluation.knn import knn_probabilities
from fastfgssl.evaluation.linear_probe import linear_probe
from fastfgssl.evaluation.logistic_regression import fit_logistic_regression
from fastfgssl.evaluation.matching import matching_accuracy
from fastfgssl.runtime.errors import UserError
from helpers.paths import ROOT


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["at once", "in blocks"])
def block_sizes(request, monkeypatch):
    if request.param == "in blocks":
        for module in (knn, matching):
            monkeypatch.setattr(module, "QUERIES", 37)
            monkeypatch.setattr(module, "KEYS", 53)
        monkeypatch.setattr(logistic_regression, "_BLOCK_BYTES", 12000)
        monkeypatch.setattr(logistic_regression, "_KEPT_BYTES", 0)


def stored(features: torch.Tensor, batch: int = 70) -> FeatureRows:
    rows = FeatureRows()
    for part in features.split(batch):
        rows.append(part)
    return rows


def test_rows_come_back_as_they_were_added():
    features = normal(200, 5)
    rows = stored(features)
    assert rows.shape == (200, 5)
    for part in (slice(None), slice(0, 1), slice(69, 141), slice(199, 400), slice(7, 7)):
        torch.testing.assert_close(rows[part], features[part], rtol=0, atol=0)
    rows.append(features[:3].half())  # in the middle of reading
    torch.testing.assert_close(rows[200:], features[:3].half().float(), rtol=0, atol=0)
    both = SideBySide([stored(features), stored(2 * features[:, :2])])
    assert both.shape == (200, 7)
    torch.testing.assert_close(both[60:150], torch.cat([features, 2 * features[:, :2]], dim=1)[60:150])
    assert [part.rows.start for part in blocks(both, 90)] == [0, 90, 180]


def test_the_file_is_gone_with_the_rows():
    rows = stored(normal(10, 2))
    file = rows._file
    assert not list(Path(tempfile.gettempdir()).glob("fastfgssl-features-*"))  # it has no name
    del rows
    assert file.closed


def test_a_full_disk_is_one_line_that_names_the_folder(monkeypatch):
    rows = FeatureRows()

    class Full:
        def seek(self, *_): ...
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rows, "_file", Full())
    with pytest.raises(UserError, match=r"cannot keep features in .*: No space left on device; set TMPDIR to") as error:
        rows.append(torch.zeros(1, 2))
    assert "\n" not in str(error.value)


def whole_knn(train, labels, queries, num_classes, k=20, temperature=0.07):
    similarity, nearest = (functional.normalize(queries) @ functional.normalize(train).T).topk(k)
    votes = torch.zeros(len(queries), num_classes)
    return votes.scatter_add_(1, labels[nearest], (similarity / temperature).exp()).argmax(1)


def test_neighbours_are_those_of_the_whole_matrix(block_sizes):
    train, queries = normal(1000, 16), normal(211, 16, seed=1)
    labels = torch.randint(0, 5, (1000,), generator=torch.Generator().manual_seed(2))
    found = knn_probabilities(stored(train), labels, stored(queries), num_classes=5).argmax(1)
    assert torch.equal(found, whole_knn(train, labels, queries, 5))


def test_fewer_samples_than_neighbours_in_any_block(block_sizes):
    train, labels = normal(60, 4), torch.arange(60) % 3
    found = knn_probabilities(stored(train), labels, stored(train), num_classes=3, k=100).argmax(1)
    assert torch.equal(found, whole_knn(train, labels, train, 3, k=60))


def test_matches_are_those_of_the_whole_matrix(block_sizes):
    keys = normal(500, 16)
    queries = keys + 1.2 * normal(500, 16, seed=1)
    similarity = functional.normalize(queries) @ functional.normalize(keys).T
    share = (similarity.argmax(1) == torch.arange(500)).float().mean()
    assert 0.2 < share < 0.9
    assert matching_accuracy(stored(queries), stored(keys)) == pytest.approx(float(share))


def test_ties_in_other_blocks_are_misses_too(block_sizes):
    alike = normal(1, 300).expand(150, 300)
    assert matching_accuracy(stored(alike), stored(alike)) == 0


def of_classes(count: int, classes: int, features: int = 12, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Features that tell the classes apart, some of them of another scale or constant; unequal classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2 * classes - 1, (count,), generator=generator) % classes
    values = torch.eye(features)[labels] + torch.randn(count, features, generator=generator)
    values[:, 0] = 1e3 + 20 * values[:, 0]
    values[:, -1] = 0.1
    return values, labels.numpy() + 3


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
def test_the_regression_is_that_of_sklearn(block_sizes, classes, strength):
    (train, labels), (queries, _) = of_classes(700, classes), of_classes(500, classes, seed=1)
    chosen = np.arange(700) % 3 != 0
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", tol=1e-3))
    theirs.fit(train[chosen].numpy(), labels[chosen])
    ours = fit_logistic_regression(stored(train), labels, strength, samples=chosen)
    np.testing.assert_allclose(ours.weights[:-1].T, theirs[1].coef_, atol=0.02 * abs(theirs[1].coef_).max())
    assert np.mean(ours.predict(stored(queries)) == theirs.predict(queries.numpy())) > 0.99


def test_the_probe_is_that_of_the_released_version_which_had_sklearns(block_sizes):
    (train, labels), (queries, truth) = of_classes(600, 3), of_classes(400, 3, seed=1)
    probe = linear_probe(stored(train), labels, np.arange(600) // 2, stored(queries))
    assert probe.strength == 0.01
    assert np.mean(probe.predictions == truth) == pytest.approx(0.6225, abs=0.005)


@pytest.mark.slow
def test_a_million_features_stay_below_the_limit():
    """The similarities of 512 queries alone would take 2 GB at once."""
    script = ROOT / "tests" / "helpers" / "evaluation_memory.py"
    arguments = ["--protocol", "knn", "--images", "1000000", "--dim", "16", "--queries", "512", "--limit-gb", "1.5"]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
