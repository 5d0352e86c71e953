"""Random numbers as a pure function of (seed, epoch, sample, what): the counter-based generator Philox 4x32-10.

Source: J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. There is no generator state, so any
number of any batch can be drawn at any time, by any rank, in any order.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Use(IntEnum):
    """What random numbers are for: no two uses share one. None is given another value: old runs stay replayable."""

    # training: order.py
    SHARD_ORDER = 0
    WINDOW_ORDER = 1
    CLASS_ORDER = 2
    # training: view_params.py
    PUZZLE = 16
    ANCHOR = 17
    PUZZLE_CROP = 18
    ANCHOR_CROP = 19
    PERMUTATION = 32
    """And those that follow it, one a grid."""
    OBJECTIVE = 48
    """What an objective draws for itself."""
    # evaluation
    SPLIT = 64
    RECALIBRATION = 65
    ONLINE_SAMPLE = 66
    LABEL_FRACTION = 67
    VALIDATION = 68


_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_LOW_WORD = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_ROUNDS = 10


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox 4x32.

    counter: uint64 [4, ...], each entry a 32-bit word; key: two 32-bit words. Returns uint64 [4, ...] of 32-bit words.
    """
    # 64-bit arrays that hold 32-bit words: one multiplication gives both halves of the product
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0 = c0 * _MULTIPLIER_0
        product_1 = c2 * _MULTIPLIER_1
        c0, c2 = (product_1 >> _WORD) ^ c1 ^ np.uint64(k0), (product_0 >> _WORD) ^ c3 ^ np.uint64(k1)
        c1, c3 = product_1 & _LOW_WORD, product_0 & _LOW_WORD
        k0, k1 = (k0 + _WEYL_0) & 0xFFFFFFFF, (k1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3))


def random_words(seed: int, epoch: np.ndarray | int, sample: np.ndarray, what: int, count: int) -> np.ndarray:
    """`count` random 32-bit words for each sample.

    seed: 64 bits; epoch: int64 [B] or one for all, below 2^32; sample: int64 [B], below 2^56; what: a `Use`, below 256.
    Returns uint64 [B, count] of 32-bit words.
    """
    sample = np.asarray(sample, dtype=np.uint64)
    blocks = -(-count // 4)
    shape = (len(sample), blocks)
    counter = np.empty((4, *shape), dtype=np.uint64)
    counter[0] = np.arange(blocks, dtype=np.uint64)
    counter[1] = (sample & _LOW_WORD)[:, None]
    counter[2] = np.broadcast_to(np.asarray(epoch, dtype=np.uint64), len(sample))[:, None]
    counter[3] = (np.uint64(what) | sample >> _WORD << np.uint64(8))[:, None]
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    return np.moveaxis(words, 0, -1).reshape(len(sample), 4 * blocks)[:, :count]


def uniform(words: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) from 32-bit words of any shape."""
    return words * 2.0**-32


def permutations(words: np.ndarray) -> np.ndarray:
    """A permutation of 0..n-1 for each row: sorts random 32-bit keys.

    words: uint64 [B, n] of 32-bit words. Returns int64 [B, n]. Uniform but for pairs of equal keys, which keep their
    order: one pair in 2^32.
    """
    # key and index in one word: sorting values is several times faster than sorting indices
    packed = words << _WORD | np.arange(words.shape[-1], dtype=np.uint64)
    packed.sort(axis=-1)
    return (packed & _LOW_WORD).astype(np.int64)
