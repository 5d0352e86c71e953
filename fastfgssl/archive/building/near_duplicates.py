"""Pictures that are nearly the same, found among millions without comparing all pairs.

Of each picture a thumbnail of its structure is kept: brightness at 32 x 32 without its slow changes, which copies
share that were encoded, resized or brightened again. Two are near-duplicates if the cosine of their thumbnails is at
least `THRESHOLD` in any of the eight orientations, so that flipped and turned copies are found too. Pairs to compare
are found by random projections (Charikar 2002): signs of a few of them make a key, and only pictures that share a key
in one of `_TABLES` tables are compared: in an archive of 60,000, 94 % of the pairs at the threshold, and all but one
in a thousand of cosine 0.96 (`collision_probability`).

A thumbnail whose structure is faint, that of a dark or an even picture, tells nothing and is like no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image
from scipy import ndimage

SIDE = 32
THRESHOLD = 0.9
"""As in `evaluation.near_duplicates`, which has what copies keep of it."""
_FAINT = 1.5
"""Standard deviation of the structure in levels of 255, below which it is noise of the sensor or of the encoder."""
_AROUND = 5
"""Pixels of a thumbnail on a side whose mean is a slow change."""
_TABLES = 32
_KEY_BITS = (12, 24)
_BLOCK = 1024
"""Pictures that are looked up at once."""
_COMPARED = 1 << 14
"""Pairs that are compared at once."""
_CROWD = 256
"""Most pictures of one key that a picture is compared with; a key that more share says little."""


def thumbnail(picture: Image.Image) -> np.ndarray:
    """int8 [SIDE * SIDE] of a picture in mode L, RGB or I;16: its structure, 0 where it has too little."""
    if picture.mode == "I;16":
        levels = np.asarray(picture, np.float32)
        low, high = np.percentile(levels, (0.5, 99.5))
        levels = (levels - low) * (255 / max(1.0, high - low))
        gray = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    else:
        gray = picture.convert("L")
    small = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0), np.float32)
    structure = small - ndimage.uniform_filter(small, _AROUND)
    for edge in (structure, structure.T):  # where a mean of one side alone would make structure of every slow change
        edge[: _AROUND // 2] = edge[-(_AROUND // 2) :] = 0
    if structure.std() < _FAINT:
        return np.zeros(SIDE * SIDE, np.int8)
    return np.rint(structure * (127 / np.abs(structure).max())).astype(np.int8).ravel()


def near_duplicates(thumbnails: np.ndarray, *, known: int = 0, seed: int = 0) -> Iterator[tuple[int, int, float]]:
    """Pairs (earlier, later, cosine) of near-duplicates among `thumbnails`, int8 [N, SIDE * SIDE], by later, earlier.

    known: so many rows at the beginning are not compared with each other. Rows may lie in a file: they are read in
    blocks. Memory is 256 bytes a row and a block's candidates.
    """
    bits = key_bits(len(thumbnails))
    planes = np.random.default_rng(seed).standard_normal((SIDE * SIDE, _TABLES * bits), np.float32)
    tables = [_Table(keys) for keys in _keys_of_all(thumbnails, planes, bits)]
    for start in range(known, len(thumbnails), _BLOCK):
        turned = _orientations(_unit(thumbnails[start : start + _BLOCK]))
        later, orientation, earlier = _candidates(tables, turned, planes, bits, start)
        cosines = np.empty(len(later), np.float32)
        for part in np.array_split(np.arange(len(later)), -(-len(later) // _COMPARED) or 1):
            rows = turned[orientation[part], later[part] - start]
            cosines[part] = np.einsum("pd,pd->p", rows, _unit(thumbnails[earlier[part]]))
        chosen = np.flatnonzero(cosines >= THRESHOLD)
        most: dict[tuple[int, int], float] = {}
        for pair, cosine in zip(zip(later[chosen], earlier[chosen], strict=True), cosines[chosen], strict=True):
            most[pair] = max(most.get(pair, 0.0), float(cosine))
        for (second, first), cosine in sorted(most.items()):
            yield int(first), int(second), cosine


def _candidates(
    tables: list[_Table], turned: np.ndarray, planes: np.ndarray, bits: int, start: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whom to compare: int64 numbers of later pictures, in which orientation, and of earlier ones that share a key."""
    of_table: list[np.ndarray] = []
    queries = np.arange(8 * turned.shape[1])  # orientation by orientation
    keys = _keys(turned.reshape(len(queries), -1), planes, bits)
    for table, column in zip(tables, keys.T, strict=True):
        query, earlier = table.having(column)
        is_earlier = earlier < start + query % turned.shape[1]
        of_table.append(query[is_earlier] << 32 | earlier[is_earlier])
    pairs = np.unique(np.concatenate(of_table))
    orientation, place = np.divmod(pairs >> 32, turned.shape[1])
    return start + place, orientation, pairs & 0xFFFFFFFF


def key_bits(number: int) -> int:
    """Bits of a key, so that as few pictures share one by chance as there are tables, or fewer."""
    return min(max(math.ceil(math.log2(max(2, number))), _KEY_BITS[0]), _KEY_BITS[1])


def collision_probability(cosine: float, number: int) -> float:
    """That two pictures of this cosine share a key in an archive of `number`."""
    of_bit = 1 - math.acos(cosine) / math.pi
    return 1 - (1 - of_bit ** key_bits(number)) ** _TABLES


class _Table:
    """Which pictures have a key: their numbers, sorted by key and then by number."""

    def __init__(self, keys: np.ndarray) -> None:
        self._order = np.argsort(keys, kind="stable").astype(np.uint32)
        self._keys = keys[self._order]

    def having(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of the place of one of `keys`, and a picture that has it: int64. Of a crowd, `_CROWD` pictures."""
        begin, end = (np.searchsorted(self._keys, keys, side) for side in ("left", "right"))
        counts = np.minimum(end - begin, _CROWD)
        first = np.cumsum(counts) - counts
        within = np.arange(counts.sum()) - np.repeat(first, counts)
        return np.repeat(np.arange(len(keys)), counts), self._order[np.repeat(begin, counts) + within].astype(np.int64)


def _keys_of_all(thumbnails: np.ndarray, planes: np.ndarray, bits: int) -> np.ndarray:
    """uint32 [T, N]"""
    keys = np.empty((_TABLES, len(thumbnails)), np.uint32)
    for start in range(0, len(thumbnails), _BLOCK):
        keys[:, start : start + _BLOCK] = _keys(_unit(thumbnails[start : start + _BLOCK]), planes, bits).T
    return keys


def _keys(rows: np.ndarray, planes: np.ndarray, bits: int) -> np.ndarray:
    """uint32 [B, T]"""
    signs = (rows @ planes > 0).reshape(len(rows), _TABLES, bits)
    return (signs @ (1 << np.arange(bits))).astype(np.uint32)


def _unit(thumbnails: np.ndarray) -> np.ndarray:
    """float32 rows of length 1, or 0 where there is no structure."""
    rows = np.asarray(thumbnails, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)


def _orientations(rows: np.ndarray) -> np.ndarray:
    """float32 [8, B, D] of [B, D]: turned by quarters, and each of these mirrored."""
    pictures = rows.reshape(-1, SIDE, SIDE)
    turned = [np.rot90(pictures, quarter, (1, 2)) for quarter in range(4)]
    return np.stack([*turned, *(picture[:, :, ::-1] for picture in turned)]).reshape(8, len(rows), -1)
