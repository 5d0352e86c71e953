"""Which sample stands at which position of the training stream: arithmetic, without state.

The stream is epochs laid end to end: position p is sample p mod N of epoch p div N, and step t's global batch is
positions [t G, (t + 1) G). In each epoch the shards are permuted, and samples are permuted inside a window of shards:
reads stay sequential per shard, and each epoch still holds every sample exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import numpy as np

from fastfgssl.data.philox import Use, permutations, random_words

_KEPT = 4  # epochs, and windows, whose order is remembered: two for a batch between them, two for who looks ahead


class Slots(NamedTuple):
    """Where a batch comes from: sample `ids[i]` as it is seen in epoch `epochs[i]`; both int64 [B]."""

    ids: np.ndarray
    epochs: np.ndarray


class Stream(Protocol):
    """An endless sequence of samples, any part of which is had at once."""

    num_samples: int
    """Positions of an epoch."""

    @property
    def ids(self) -> np.ndarray | None:
        """int64, ascending: the samples that it has; None for all of the archive."""

    def slots(self, start: int, stop: int) -> Slots:
        """Sample ids and epochs at stream positions [start, stop)."""


class _EpochLayout(NamedTuple):
    shards: np.ndarray  # int64 [S], shards in the order of this epoch
    starts: np.ndarray  # int64 [S + 1], position in the epoch at which each of them begins
    window_starts: np.ndarray  # int64 [W + 1], position at which each window begins


class Order:
    """Random access to the training stream, in O(shards + samples of a window) memory.

    shard_sizes: int64 [S], samples of each shard, in the order of the sample numbers; window: shards whose samples are
    permuted together.
    """

    ids = None

    def __init__(self, shard_sizes: np.ndarray, *, seed: int, window: int) -> None:
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        if self._sizes.ndim != 1 or self._sizes.sum() <= 0 or self._sizes.min() < 0:
            raise ValueError("shard_sizes: must be a list of counts with at least one sample in all")
        if window < 1:
            raise ValueError(f"window = {window}: must be at least 1 shard")
        self._first_ids = np.cumsum(self._sizes) - self._sizes
        self.num_samples = int(self._sizes.sum())
        # derived values, kept because consecutive batches share them; of functions, since a cache of this object's own
        # methods would keep this object
        self._layout = lru_cache(maxsize=_KEPT)(partial(_compute_layout, self._sizes, seed, window))
        self._window_order = lru_cache(maxsize=_KEPT)(partial(_compute_window_order, self._layout, seed))

    def slots(self, start: int, stop: int) -> Slots:
        """Sample ids and epochs at stream positions [start, stop)."""
        epochs, offsets = np.divmod(np.arange(start, stop, dtype=np.int64), self.num_samples)
        ids = np.empty(stop - start, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            ids[here] = self._ids_in_epoch(int(epoch), offsets[here])
        return Slots(ids, epochs)

    def _ids_in_epoch(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        layout = self._layout(epoch)
        windows = np.searchsorted(layout.window_starts, offsets, side="right") - 1
        shuffled = np.empty_like(offsets)
        for window in np.unique(windows):
            here = windows == window
            start = layout.window_starts[window]
            shuffled[here] = start + self._window_order(epoch, int(window))[offsets[here] - start]
        places = np.searchsorted(layout.starts, shuffled, side="right") - 1
        return self._first_ids[layout.shards[places]] + shuffled - layout.starts[places]


class SubsetOrder:
    """The order of some samples alone, their shards and windows as they lie in the archive.

    ids: int64 [N], ascending, at least one; shard_sizes and window as for `Order`.
    """

    def __init__(self, ids: np.ndarray, shard_sizes: np.ndarray, *, seed: int, window: int) -> None:
        self.ids = ids
        of_shard = np.searchsorted(np.cumsum(shard_sizes), ids, side="right")
        self._order = Order(np.bincount(of_shard, minlength=len(shard_sizes)), seed=seed, window=window)
        self.num_samples = len(ids)

    def slots(self, start: int, stop: int) -> Slots:
        """Sample ids and epochs at stream positions [start, stop)."""
        places, epochs = self._order.slots(start, stop)
        return Slots(self.ids[places], epochs)


class BalancedOrder:
    """Every class as often as any other: each run of K positions has one sample of each of the K classes.

    Within a class each of its passes shows every sample once, so that those of rare classes come again sooner; an epoch
    of a slot is its class's. labels: int64 [N], the classes of `ids`; the others as for `SubsetOrder`.
    """

    def __init__(self, ids: np.ndarray, labels: np.ndarray, shard_sizes: np.ndarray, *, seed: int, window: int) -> None:
        present = np.unique(labels)
        self.ids, self._seed = ids, seed
        self._orders = [SubsetOrder(ids[labels == label], shard_sizes, seed=seed, window=window) for label in present]
        self.num_samples = len(ids)

    def slots(self, start: int, stop: int) -> Slots:
        """Sample ids and epochs at stream positions [start, stop)."""
        positions, classes = np.arange(start, stop), len(self._orders)
        turns, places = np.divmod(positions, classes)
        words = random_words(self._seed, 0, np.unique(turns), Use.CLASS_ORDER, classes)
        of_class = permutations(words)[turns - turns[0], places] if len(turns) else turns
        ids, epochs = np.empty_like(positions), np.empty_like(positions)
        for number, order in enumerate(self._orders):
            here = of_class == number
            if here.any():  # neighbouring turns: the class has one position in each
                first, last = turns[here][[0, -1]]
                ids[here], epochs[here] = order.slots(int(first), int(last) + 1)
        return Slots(ids, epochs)


def _compute_layout(sizes: np.ndarray, seed: int, window: int, epoch: int) -> _EpochLayout:
    keys = random_words(seed, epoch, np.zeros(1, dtype=np.int64), Use.SHARD_ORDER, len(sizes))
    shards = permutations(keys)[0]
    starts = np.concatenate(([0], np.cumsum(sizes[shards])))
    window_starts = np.append(starts[: len(sizes) : window], starts[-1])
    return _EpochLayout(shards, starts, window_starts)


def _compute_window_order(layout: Callable[[int], _EpochLayout], seed: int, epoch: int, window: int) -> np.ndarray:
    start, stop = layout(epoch).window_starts[window : window + 2]
    keys = random_words(seed, epoch, np.array([window]), Use.WINDOW_ORDER, int(stop - start))
    return permutations(keys)[0]


def global_batch(step: int, *, shard_sizes: np.ndarray, batch_size: int, seed: int, window: int) -> np.ndarray:
    """Sample ids of one step's global batch: int64 [batch_size], over all ranks; rank r of R takes its R-th part."""
    order = Order(shard_sizes, seed=seed, window=window)
    return order.slots(step * batch_size, (step + 1) * batch_size).ids
