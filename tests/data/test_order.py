"""Order and random numbers: published vectors, and the properties that training stands on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfgssl.data.order import Order, global_batch
from fastfgssl.data.philox import permutations, philox4x32, random_words, uniform


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # philox4x32 with 10 rounds in Random123's kat_vectors
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    words = [np.array([int(word, 16) for word in text.split()], dtype=np.uint64) for text in (counter, expected)]
    np.testing.assert_array_equal(philox4x32(words[0], tuple(int(word, 16) for word in key.split())), words[1])


def test_words_are_a_pure_function_of_each_sample():
    samples, epochs = np.array([5, 0, 2**40, 5]), np.array([1, 2, 3, 9])
    together = random_words(2**40 + 3, epochs, samples, 7, 10)
    for row, (sample, epoch) in enumerate(zip(samples, epochs, strict=True)):
        alone = random_words(2**40 + 3, int(epoch), np.array([sample]), 7, 10)
        np.testing.assert_array_equal(together[row], alone[0])
    np.testing.assert_array_equal(random_words(2**40 + 3, epochs, samples, 7, 3), together[:, :3])


def test_words_differ_with_every_part_of_their_key():
    base = {"seed": 1, "epoch": 2, "sample": np.array([3]), "what": 4}
    changes = [{"seed": 2}, {"seed": 1 + 2**32}, {"epoch": 3}, {"what": 5}]
    changes += [{"sample": np.array([sample])} for sample in (4, 3 + 2**32, 3 + 2**40)]
    drawn = {tuple(random_words(**{**base, **change}, count=4)[0].tolist()) for change in [{}, *changes]}
    assert len(drawn) == len(changes) + 1


def test_permutations_are_uniform():
    orders = permutations(random_words(0, 0, np.arange(24_000), 1, 4))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    # chi-squared with 23 degrees of freedom: above 60 once in 30,000 seeds
    assert ((counts - 1000) ** 2 / 1000).sum() < 60


def test_uniform_numbers_fill_the_unit_interval():
    u = uniform(random_words(0, 0, np.arange(10_000), 1, 4))
    assert u.min() >= 0
    assert u.max() < 1
    counts, _ = np.histogram(u, bins=20, range=(0, 1))
    assert ((counts - 2000) ** 2 / 2000).sum() < 50  # 19 degrees of freedom


shards = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 0)


@given(sizes=shards, seed=st.integers(0, 2**63 - 1), window=st.integers(1, 10))
def test_every_epoch_holds_every_sample_once(sizes, seed, window):
    order = Order(sizes, seed=seed, window=window)
    for epoch in (0, 1, 5):
        slots = order.slots(epoch * sum(sizes), (epoch + 1) * sum(sizes))
        assert sorted(slots.ids) == list(range(sum(sizes)))
        assert set(slots.epochs) == {epoch}


@given(
    sizes=shards, seed=st.integers(0, 100), window=st.integers(1, 10), batch=st.integers(1, 30), step=st.integers(0, 50)
)
def test_any_part_of_the_stream_can_be_had_alone(sizes, seed, window, batch, step):
    stream = Order(sizes, seed=seed, window=window).slots(0, (step + 1) * batch).ids
    got = global_batch(step, shard_sizes=sizes, batch_size=batch, seed=seed, window=window)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, stream[step * batch :])


def test_epochs_and_seeds_differ():
    order = Order([50, 50], seed=0, window=2)
    first, second = order.slots(0, 100).ids, order.slots(100, 200).ids
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Order([50, 50], seed=1, window=2).slots(0, 100).ids)


def test_a_window_reads_only_its_shards():
    sizes, window = [20] * 10, 3
    ids = Order(sizes, seed=4, window=window).slots(0, 200).ids
    shards_in_order = ids.reshape(-1, 20) // 20
    for start in range(0, 10, window):
        assert len(np.unique(shards_in_order[start : start + window])) == len(shards_in_order[start : start + window])


def test_samples_are_shuffled_across_the_shards_of_a_window():
    ids = Order([100, 100], seed=0, window=2).slots(0, 200).ids
    from_first = (ids[:100] < 100).sum()
    assert 25 < from_first < 75


@pytest.mark.parametrize("sizes", [[], [0, 0], [3, -1], [[1]]])
def test_impossible_shards_are_refused(sizes):
    with pytest.raises(ValueError, match="shard_sizes"):
        Order(sizes, seed=0, window=1)
