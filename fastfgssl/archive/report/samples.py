"""Pictures of an archive's samples, read from its shards."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastfgssl.archive.images.pictures import as_gray
from fastfgssl.archive.images.preview import preview, shown_pixels
from fastfgssl.archive.manifest import Archive
from fastfgssl.runtime.patience import patiently

_FEW = 1 << 16
"""Pixels of a picture whose levels are counted, at most."""
_LOOKED_AT = 16
"""Samples that tell whether an archive is gray."""


class Samples:
    """The samples in a folder that is, or becomes, an archive."""

    def __init__(self, archive: Path, shards: list[dict], table: pa.Table) -> None:
        self.table = table
        self._archive, self._shards = archive, shards

    def __len__(self) -> int:
        return len(self.table)

    def pixels(self, sample: int) -> np.ndarray | None:
        """uint8 of [height, width] or [height, width, 3]; None for what cannot be read, as in a damaged shard."""
        names = ("shard", "offset", "size", "low", "high")
        shard, offset, size, low, high = (self.table[name][sample].as_py() for name in names)
        path = self._archive / self._shards[shard]["name"]

        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)

        try:
            return shown_pixels(patiently(read, f"read {path}"), (low, high))
        except Exception:  # of decoders; a report is no place to fail in
            return None

    def preview(self, sample: int) -> bytes:
        """A small JPEG; empty for what cannot be read."""
        pixels = self.pixels(sample)
        return b"" if pixels is None else preview(pixels, (0, 255))


def mostly_gray(archive: Archive) -> bool:
    """Whether most samples show gray, in one channel or in three that are alike: of some that are looked at.

    Those that cannot be read count as colour.
    """
    ids = np.unique(np.linspace(0, archive.num_samples - 1, _LOOKED_AT).astype(np.int64))
    rows = archive.columns(ids, ("shard", "offset", "size"))
    gray = 0
    for shard, offset, size in zip(*(column.tolist() for column in rows.values()), strict=True):
        with suppress(Exception), archive.shard_path(shard).open("rb") as file:
            file.seek(offset)
            gray += as_gray(shown_pixels(file.read(size), (0, 255))).ndim == 2
    return gray > len(ids) / 2


class Brightness:
    """How bright pictures are: shares of levels over all of them, each with the same weight, and the mean of each."""

    BINS = 32

    def __init__(self) -> None:
        self.means: list[float] = []
        self._levels = np.zeros(self.BINS)

    def add(self, pixels: np.ndarray) -> None:
        """pixels: as `Samples.pixels`; of colours the mean of three counts."""
        step = max(1, round((pixels.shape[0] * pixels.shape[1] / _FEW) ** 0.5))
        few = pixels[::step, ::step]
        colours = 3 if few.ndim == 3 else 1
        sums = few[..., 0].astype(np.uint16) + few[..., 1] + few[..., 2] if colours == 3 else few
        counts = np.bincount(sums.ravel(), minlength=256 * colours).reshape(self.BINS, -1).sum(axis=1)
        self._levels += counts / sums.size
        self.means.append(float(sums.sum()) / colours / sums.size)

    @property
    def levels(self) -> np.ndarray:
        """Shares, float [BINS]."""
        return self._levels / max(1, len(self.means))

    @property
    def mean_levels(self) -> np.ndarray:
        """Shares of pictures by their mean, float [BINS]."""
        return np.histogram(self.means, bins=self.BINS, range=(0, 256))[0] / max(1, len(self.means))

    @property
    def edges(self) -> np.ndarray:
        return np.linspace(0, 256, self.BINS + 1)
