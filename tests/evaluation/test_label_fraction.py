"""Part of the labels: whole groups of each class, the same for every method, and a part of every larger part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastfgssl.archive.manifest import Archive
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.pretrained import build_untrained
from fastfgssl.evaluation.protocols import run_protocol
from fastfgssl.evaluation.split import draw_fraction, labelled_split
from fastfgssl.runtime.errors import UserError


def samples(per_class: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, labels and groups: of each class as many groups, of one to three images."""
    of_group = np.repeat(np.arange(len(per_class)), per_class)
    groups = np.repeat(np.arange(len(of_group)), 1 + np.arange(len(of_group)) % 3)
    return 5 + 2 * np.arange(len(groups)), of_group[groups], groups


@given(st.floats(0.15, 1), st.integers(0, 2**40))
def test_groups_are_whole_and_classes_keep_their_share(fraction, seed):
    ids, labels, groups = samples((30, 12, 4))
    kept = np.isin(ids, draw_fraction(ids, labels, groups, fraction, seed))
    assert not set(groups[kept]) & set(groups[~kept])
    for label, size in enumerate((30, 12, 4)):
        assert abs(len(np.unique(groups[kept & (labels == label)])) - fraction * size) <= 0.5


def test_less_is_part_of_more_and_seeds_differ():
    ids, labels, groups = samples((30, 12, 4))
    fewer, more, other = (
        draw_fraction(ids, labels, groups, part, seed) for part, seed in ((0.2, 7), (0.5, 7), (0.2, 8))
    )
    assert set(fewer) < set(more)
    assert set(fewer) != set(other)
    assert (np.diff(more) > 0).all()
    np.testing.assert_array_equal(draw_fraction(ids, labels, groups, 1, 7), ids)


def test_what_is_drawn_depends_on_no_other_sample():
    """A method that leaves some classes out learns from the same images of the others."""
    ids, labels, groups = samples((30, 12))
    first = labels == 0
    alone = draw_fraction(ids[first], labels[first], groups[first], 0.3, 1)
    assert set(alone) == set(draw_fraction(ids, labels, groups, 0.3, 1)) & set(ids[first])


def test_a_class_that_would_be_empty_is_one_line_that_says_how_much_would_do():
    ids, labels, groups = samples((200, 4))
    message = (
        r"^a label fraction of 0.1 leaves class rare without images: it has 4 groups to take from; take 0.125 or more"
    )
    with pytest.raises(UserError, match=message):
        draw_fraction(ids, labels, groups, 0.1, 0, classes=("common", "rare"))
    assert set(labels[np.isin(ids, draw_fraction(ids, labels, groups, 0.125, 0))]) == {0, 1}


@pytest.mark.parametrize("fraction", [0, -1, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(UserError, match=r"label fraction = .*: must be above 0 and at most 1"):
        draw_fraction(*samples((3, 3)), fraction, 0)


def test_protocols_learn_from_that_part(archive_path, make_config, monkeypatch):
    archive, config = Archive.open(archive_path), make_config()
    extractor = FeatureExtractor(build_untrained(config, 0), config, archive, torch.device("cpu"), 32)
    split, _ = labelled_split(archive)
    whole, part = (run_protocol(extractor, archive, "knn", label_fraction=share) for share in (1.0, 0.3))
    assert whole.fit_samples == len(split.train)
    assert part.fit_samples == pytest.approx(0.3 * whole.fit_samples, abs=3)
    assert (part.val_samples, part.label_fraction) == (whole.val_samples, 0.3)
    with pytest.raises(UserError, match=r"label_fraction = 0\.5: must be 1 for matching"):
        run_protocol(extractor, archive, "matching", label_fraction=0.5)
    monkeypatch.setattr(extractor, "plain", None)  # whose features may take hours
    with pytest.raises(UserError, match="too few labelled images for the linear probe"):
        run_protocol(extractor, archive, "linear", label_fraction=0.1)
