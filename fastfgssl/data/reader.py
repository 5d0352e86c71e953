"""The encoded bytes and picture sizes of samples, by number, from memory-mapped shards."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastfgssl.archive.manifest import Archive

# each mapped shard holds a file descriptor, of which a process commonly has 1,024
_MAPPED_SHARDS = 256


class Reader:
    """Random access to an archive's samples."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._shard_bytes = lru_cache(maxsize=_MAPPED_SHARDS)(self._map_shard)

    def read(self, ids: np.ndarray) -> list[np.ndarray]:
        """The encoded images of samples `ids` (int64 [B]): B arrays of uint8, views of the mapped shards."""
        rows = self._archive.columns(ids, ("shard", "offset", "size"))
        places = zip(rows["shard"].tolist(), rows["offset"].tolist(), rows["size"].tolist(), strict=True)
        return [self._shard_bytes(shard)[offset : offset + size] for shard, offset, size in places]

    def picture_sizes(self, ids: np.ndarray) -> np.ndarray:
        """Width and height in pixels of the decoded images: int64 [B, 2]."""
        rows = self._archive.columns(ids, ("width", "height"))
        return np.stack((rows["width"], rows["height"]), axis=1).astype(np.int64)

    def labels(self, ids: np.ndarray) -> np.ndarray:
        """Classes of the samples: int64 [B], -1 for one without a label."""
        if not self._archive.has_column("label"):
            return np.full(len(ids), -1)
        return self._archive.columns(ids, ("label",))["label"].astype(np.int64)

    def _map_shard(self, shard: int) -> np.ndarray:
        # a plain array over the map: slicing np.memmap itself costs several microseconds a slice
        return np.asarray(np.memmap(self._archive.shard_path(shard), dtype=np.uint8, mode="r"))
