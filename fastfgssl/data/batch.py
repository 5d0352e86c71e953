"""What one step is given: the views of a batch of images, as tensors on the training device, and their labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Needs(NamedTuple):
    """What a batch has to hold; the graph makes that and no more."""

    anchor: bool = True
    view: bool = True
    """The puzzle view as a whole."""
    grids: tuple[int, ...] = ()
    """Tiles a side of each puzzle; 0 for a puzzle that is not needed, so that the others keep their random numbers."""
    labels: bool = False
    draws: int = 0
    """Random numbers of each image that the objective uses itself."""


class Batch(NamedTuple):
    """Views of B images: normalised float16 or float32 [B, C, S, S], channels-last in memory; C is model.in_channels.

    Row i of every tensor is of the same image, `ids[i]`. What nobody needs is None.
    """

    anchor: Tensor | None
    puzzle_view: Tensor | None
    puzzles: tuple[Tensor | None, ...]
    """The puzzle view cut and shuffled, one for each grid, finest first."""
    ids: np.ndarray
    """int64 [B], sample numbers; of a sample that cannot be decoded, the number of its substitute."""
    labels: Tensor | None = None
    """int64 [B], classes; -1 for an image without one."""
    draws: np.ndarray | None = None
    """float32 [B, n], uniform in [0, 1): random numbers of each image and epoch, the same whatever rank has it."""

    @property
    def nbytes(self) -> int:
        """Bytes of all views together."""
        return sum(view.nbytes for view in (self.anchor, self.puzzle_view, *self.puzzles) if view is not None)

    def chunk(self, parts: int) -> list[Batch]:
        """`parts` batches of as many images, in their order."""
        if parts == 1:
            return [self]
        size = len(self.ids) // parts
        parts_of = (slice(start, start + size) for start in range(0, len(self.ids), size))
        return [self.rows(part, part) for part in parts_of]

    def in_layout(self, layout: torch.memory_format) -> Batch:
        """The same views with this memory format."""
        return self._each(lambda view: view.contiguous(memory_format=layout))

    def rows(self, rows: Any, of_ids: Any) -> Batch:
        """Some rows: an index of tensors, and the same one of `ids`."""
        part = self._each(lambda view: view[rows])
        labels = None if self.labels is None else self.labels[rows]
        draws = None if self.draws is None else self.draws[of_ids]
        return part._replace(ids=self.ids[of_ids], labels=labels, draws=draws)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        anchor, view, *puzzles = (
            None if view is None else change(view) for view in (self.anchor, self.puzzle_view, *self.puzzles)
        )
        return self._replace(anchor=anchor, puzzle_view=view, puzzles=tuple(puzzles))


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy of `values` on a GPU, which the host does not wait for; on the CPU the same memory."""
    on_host = torch.from_numpy(values)
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host.to(device)
