"""An exponential average of a network's weights, which often scores better than the weights of any one step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """`network`, a copy of `model` whose parameters and running statistics are averages over steps.

    decay: what it keeps of itself at a step. At step t it is at most (1 + t) / (10 + t), so that the first weights,
    which are random, are soon forgotten (as TensorFlow's ExponentialMovingAverage does).
    """

    def __init__(self, model: nn.Module, decay: float, shared: Sequence[object] = ()) -> None:
        """shared: what modules refer to that cannot be copied with them, such as a process group."""
        self._model, self._decay, self._steps = model, decay, 0
        self.network = copy.deepcopy(model, {id(one): one for one in shared}).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are after a step."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        pairs = list(zip(self.network.state_dict().values(), self._model.state_dict().values(), strict=True))
        averages = [(average, value) for average, value in pairs if average.is_floating_point()]
        torch._foreach_lerp_([average for average, _ in averages], [value for _, value in averages], 1 - decay)
        for average, value in pairs:
            if not average.is_floating_point():  # counts of batches
                average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """`average`, a state dict of the network, and `averaged_steps`."""
        return {"average": self.network.state_dict(), "averaged_steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["average"])
        self._steps = state["averaged_steps"]
