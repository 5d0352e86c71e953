"""Orders of some samples: each once an epoch, or each class as often."""

from __future__ import annotations

import numpy as np

from fastfgssl.data.order import BalancedOrder, Order, SubsetOrder

SIZES = np.array([30, 50, 20])


def test_a_subset_is_shown_once_an_epoch():
    ids = np.array([1, 2, 29, 30, 31, 79, 80, 99])
    slots = SubsetOrder(ids, SIZES, seed=3, window=2).slots(0, 24)
    for epoch in range(3):
        assert sorted(slots.ids[slots.epochs == epoch]) == ids.tolist()
    assert not np.array_equal(slots.ids[:8], slots.ids[8:16])


def test_a_subset_of_everything_is_the_order_itself():
    whole, subset = (
        order.slots(37, 260)
        for order in (
            Order(SIZES, seed=5, window=2),
            SubsetOrder(np.arange(100), SIZES, seed=5, window=2),
        )
    )
    np.testing.assert_array_equal(whole.ids, subset.ids)
    np.testing.assert_array_equal(whole.epochs, subset.epochs)


def test_classes_come_in_turns_and_each_sample_of_a_class_before_any_comes_again():
    ids = np.arange(0, 100, 2)
    labels = np.where(np.arange(50) < 40, 0, np.where(np.arange(50) < 48, 1, 7))
    order = BalancedOrder(ids, labels, SIZES, seed=0, window=2)
    slots = order.slots(0, 300)
    of_class = labels[np.searchsorted(ids, slots.ids)]
    assert all(sorted(turn) == [0, 1, 7] for turn in of_class.reshape(-1, 3))
    assert len({tuple(turn) for turn in of_class.reshape(-1, 3).tolist()}) == 6  # no class has a place of its own
    for label, count in ((0, 40), (1, 8), (7, 2)):
        shown = slots.ids[of_class == label]
        for start in range(0, len(shown) - count + 1, count):
            assert len(set(shown[start : start + count])) == count
    # no two positions show the same sample under the same random numbers
    assert len(set(zip(slots.ids.tolist(), slots.epochs.tolist(), strict=True))) == 300


def test_any_part_of_a_balanced_stream_is_that_part():
    ids = np.arange(100)
    order = BalancedOrder(ids, ids % 7, SIZES, seed=0, window=2)
    whole = order.slots(0, 500)
    for start, stop in ((0, 1), (3, 4), (100, 165), (13, 500), (20, 20)):
        part = order.slots(start, stop)
        np.testing.assert_array_equal(part.ids, whole.ids[start:stop])
        np.testing.assert_array_equal(part.epochs, whole.epochs[start:stop])
