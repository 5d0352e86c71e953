"""What one step is given: the views of a batch of images, as tensors on the training device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class Batch(NamedTuple):
    """Views of B images: normalised float16 or float32 [B, 3, S, S], channels-last in memory.

    Row i of every tensor is a view of the same image, `ids[i]`.
    """

    anchor: torch.Tensor
    puzzle_view: torch.Tensor
    puzzles: tuple[torch.Tensor, ...]  # the puzzle view cut and shuffled, one for each grid, finest first
    ids: np.ndarray  # int64 [B], sample numbers; of a sample that cannot be decoded, the number of its substitute

    @property
    def nbytes(self) -> int:
        """Bytes of all views together."""
        return sum(view.nbytes for view in (self.anchor, self.puzzle_view, *self.puzzles))
