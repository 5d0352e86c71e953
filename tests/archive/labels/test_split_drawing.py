"""Splits that are drawn: near their shares in each class and in all, groups whole, and the same whatever the order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfgssl.archive.labels.drawing import OPEN, draw_splits, read_shares, units_of
from fastfgssl.runtime.errors import UserError

SHARES = ("0.8/0.1/0.1", "0.5/0.5", "0.34/0.33/0.33", "0.9/0.1")


def some_hashes(number: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 63, (number, 2)).astype(np.uint64)


def draw(text: str, groups: np.ndarray, classes: np.ndarray, seed: int = 0, **others: np.ndarray) -> np.ndarray:
    number = len(groups)
    columns = {"hashes": some_hashes(number, number), "given": np.full(number, OPEN)} | others
    return draw_splits(read_shares(text), units_of(number, groups), classes, **columns, seed=seed)


def furthest(text: str, splits: np.ndarray, classes: np.ndarray) -> float:
    """How many samples a split has too many or too few, in the whole or in the class where that is most."""
    wholes = [np.ones(len(classes), bool), *(classes == one for one in np.unique(classes))]
    shares = list(read_shares(text).values())
    return max(abs((splits[some] == i).sum() - share * some.sum()) for some in wholes for i, share in enumerate(shares))


def drawn_classes(rng: np.random.Generator, number: int) -> np.ndarray:
    return rng.choice(12, number, p=rng.dirichlet(np.full(12, 0.5))) - 1


@given(st.integers(0, 10_000), st.integers(1, 400), st.sampled_from(SHARES))
def test_without_groups_shares_are_met_within_three_images_in_each_class(seed, number, text):
    classes = drawn_classes(np.random.default_rng(seed), number)
    splits = draw(text, np.full(number, -1), classes, seed)
    assert furthest(text, splits, classes) <= 3


@given(st.integers(0, 10_000), st.integers(1, 400), st.integers(1, 200), st.sampled_from(SHARES), st.booleans())
def test_with_groups_within_the_largest_of_them_and_two_images(seed, number, num_groups, text, one_class):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, num_groups, number)
    classes = drawn_classes(rng, num_groups)[groups] if one_class else drawn_classes(rng, number)
    splits = draw(text, groups, classes, seed)
    assert furthest(text, splits, classes) <= np.bincount(groups).max() + 2
    for group in np.unique(groups):
        assert len(set(splits[groups == group].tolist())) == 1


@given(st.integers(0, 10_000))
def test_a_rare_class_of_as_many_patients_as_its_shares_need_is_in_each_split(seed):
    """Five images of either rare class, of ten patients of two or three images."""
    numbers = np.arange(100)
    classes = np.where(numbers % 10 != 0, 1, np.where(numbers % 20 != 0, 2, 0))
    splits = draw("0.6/0.2/0.2", numbers * 2 // 5, classes, hashes=some_hashes(100, seed))
    assert [np.bincount(splits[classes == rare]).tolist() for rare in (0, 2)] == [[3, 1, 1]] * 2


@given(st.integers(0, 10_000), st.integers(2, 100))
def test_the_order_of_the_samples_does_not_matter_and_the_seed_does(seed, number):
    rng = np.random.default_rng(seed)
    groups, classes, hashes = rng.integers(-1, 30, number), drawn_classes(rng, number), some_hashes(number, seed)
    order = rng.permutation(number)
    one = draw("0.6/0.2/0.2", groups, classes, hashes=hashes)
    other = draw("0.6/0.2/0.2", groups[order], classes[order], hashes=hashes[order])
    assert one[order].tolist() == other.tolist()


def test_another_seed_is_another_split_of_the_same_shares():
    alone, classes = np.full(1000, -1), np.arange(1000) % 3
    one, other = (draw("0.8/0.1/0.1", alone, classes, seed) for seed in (0, 1))
    assert np.bincount(one).tolist() == np.bincount(other).tolist() == [800, 100, 100]
    both = (one == 2) & (other == 2)
    assert 2 <= both.sum() <= 25  # of 100, 10 by chance


@given(st.integers(0, 10_000), st.integers(1, 100), st.integers(1, 100))
def test_what_is_in_a_split_stays_and_takes_its_group_along(seed, old, new):
    rng = np.random.default_rng(seed)
    groups, classes = rng.integers(-1, 60, old + new), drawn_classes(rng, old + new)
    hashes = some_hashes(old + new, seed)
    before = draw("0.8/0.1/0.1", groups[:old], classes[:old], hashes=hashes[:old])
    given_ = np.concatenate([before, np.full(new, OPEN)])
    after = draw("0.8/0.1/0.1", groups, classes, hashes=hashes, given=given_)
    assert after[:old].tolist() == before.tolist()
    for sample in range(old, old + new):
        of_group = before[groups[:old] == groups[sample]] if groups[sample] >= 0 else before[:0]
        assert len(of_group) == 0 or after[sample] == of_group[0]


def test_what_is_added_makes_good_for_what_was_there():
    """All old samples are for training: of the new, more go to the other splits."""
    alone = np.full(100, -1)
    given_ = np.where(np.arange(100) < 50, 0, OPEN)
    splits = draw("0.6/0.2/0.2", alone, np.zeros(100, int), given=given_)
    assert np.bincount(splits).tolist() == [60, 20, 20]


def test_links_join_across_columns():
    one = np.array([1, 1, -1, 3, -1, 5])
    two = np.array([-1, 7, 7, 9, -1, 9])
    units = units_of(6, one, two)
    assert units[0] == units[1] == units[2] != units[3] == units[5]
    assert len(set(units.tolist())) == 3


BAD = {
    "0.8": "must be shares of train, val and test such as 0.8/0.1/0.1, or of train and test, not '0.8'",
    "a/b": "must be shares of train, val and test",
    "0.7/0.1/0.1/0.1": "must be shares of train, val and test",
    "80/10/10": "the shares of train, val and test must sum to 1, and sum to 100: 0.8/0.1/0.1 would do",
    "0.8/0.3": "the shares of train and test must sum to 1, and sum to 1.1: 0.7273/0.2727 would do",
    "0.9/0/0.1": "each share must be above 0; two shares are those of train and test",
    "0.9/nan": "each share must be above 0",
    "1.1/-0.1": "each share must be above 0",
}


@pytest.mark.parametrize("text", BAD)
def test_wrong_shares_say_what_would_be_right(text):
    with pytest.raises(UserError) as told:
        read_shares(text)
    assert BAD[text] in str(told.value)


def test_shares_have_names():
    assert read_shares("0.8/0.2") == {"train": 0.8, "test": 0.2}
    assert read_shares("0.33/0.33/0.34") == {"train": 0.33, "val": 0.33, "test": 0.34}
