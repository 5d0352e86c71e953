"""Features of more images than memory holds: kept in a temporary file, read some rows at a time."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fastfgssl.runtime.errors import UserError

QUERIES, KEYS = 4096, 16384
"""Rows and columns of a similarity matrix that exist at a time: 0.3 GB."""
GPU_QUERIES = 32768
"""The rows on a GPU, where reading the keys is what takes time: 2 GB."""
CPU = torch.device("cpu")


class Rows(Protocol):
    """A matrix [N, D] that gives some of its rows at a time, as a tensor does."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice) -> torch.Tensor: ...


class Block(NamedTuple):
    rows: slice
    values: torch.Tensor  # [rows, D]


def blocks(matrix: Rows, most: int) -> Iterator[Block]:
    """All of `matrix` in order, at most `most` rows at a time."""
    for start in range(0, len(matrix), most):
        rows = slice(start, min(start + most, len(matrix)))
        yield Block(rows, matrix[rows])


class FeatureRows:
    """Features of N images, float32 [N, D], in a file without a name in $TMPDIR that is gone with this object."""

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="fastfgssl-features-")  # noqa: SIM115 - open as long as this object
        except OSError as error:
            raise _cannot_keep(error) from None
        weakref.finalize(self, self._file.close)
        self.shape = (0, 0)

    def append(self, features: torch.Tensor) -> None:
        """Adds rows [B, D], on any device. Raises `UserError` if the disk is full."""
        try:
            self._file.seek(0, 2)
            self._file.write(features.float().cpu().contiguous().numpy().data)
            self._file.flush()
        except OSError as error:
            raise _cannot_keep(error) from None
        self.shape = (len(self) + len(features), features.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> torch.Tensor:
        start, stop, _ = rows.indices(len(self))
        found = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        self._file.seek(start * found.itemsize * self.shape[1])
        self._file.readinto(found.data)
        return torch.from_numpy(found)


class SideBySide:
    """The columns of several matrices of as many rows, joined as they are read: float32 [N, sum of D]."""

    def __init__(self, parts: list[Rows]) -> None:
        self._parts = parts

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), sum(part.shape[1] for part in self._parts)

    def __len__(self) -> int:
        return len(self._parts[0])

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return torch.cat([part[rows] for part in self._parts], dim=1)


def _cannot_keep(error: OSError) -> UserError:
    return UserError(
        f"cannot keep features in {tempfile.gettempdir()}: {error.strerror or error}; set TMPDIR to a folder with space"
        " for 4 bytes a feature and image"
    )
