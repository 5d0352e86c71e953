"""What the entries of a listing are called in the archive."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fastfgssl.archive.building.base import Base, binary_ids, hexadecimal_ids
from fastfgssl.archive.building.keys import Key
from fastfgssl.archive.listing import Listing


class Ids:
    """What the entries of a listing are called under a key."""

    def __init__(self, listing: Listing, key: Key) -> None:
        self.listing, self.key = listing, key
        sources = [source.name for source in listing.sources]
        found = bytearray()
        for _, batch in listing.batches():
            for source, name in zip(batch["source"].to_pylist(), batch["name"].to_pylist(), strict=True):
                found += key.id(sources[source], name)
        self.binary = np.frombuffer(bytes(found), np.uint64).reshape(-1, 2)
        """uint64 [N, 2]"""

    def of(self, rows: np.ndarray) -> pa.Array:
        """As hexadecimal digits."""
        return hexadecimal_ids(self.binary[rows])

    def grown(self, base: Base, known: np.ndarray) -> list[str]:
        """Of the entries that an archive knows, those that have another size than when they were added to it."""
        rows = self.listing.images[known[self.listing.images]]
        if not len(rows):
            return []
        ours = binary_ids(base.accounting["id"])[:, 0]
        order = np.argsort(ours, kind="stable")
        at = order[np.searchsorted(ours[order], self.binary[rows, 0])]
        sizes = self.listing.table["size"].to_numpy()[rows]
        return [self.listing.where(row) for row in rows[base.accounting["bytes"].to_numpy()[at] != sizes].tolist()]
