"""An objective of next to nothing: what a test trains that is about files, not about learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch
from fastfgssl.objectives.base import Needs, Objective, Output, Update, made, place_model
from fastfgssl.runtime.distributed import World


class _Closer(Update):
    """Draws the mean colours of an image's two views together."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        return tuple(self.model(made(view).mean(dim=(2, 3))) for view in (batch.anchor, batch.puzzle_view))

    def compare(self, embeddings: tuple[Tensor, ...], batch: Batch, *, log: bool) -> Output:
        first, second = embeddings
        loss = (first - second).square().mean() + (first.var(dim=0) - 1).square().mean()
        return Output(loss, {"distance": loss.detach()})


class _Tiny(Objective):
    needs = Needs()
    weights = {"distance": 1.0}  # noqa: RUF012 - never changed in place

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.updates = [_Closer(model)]
        self._steps = torch.zeros(1, dtype=torch.int64)

    def after_step(self, progress: float) -> None:
        self._steps += 1

    def state_dict(self) -> dict:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict) -> None:
        self._steps = state["steps"]


def build(config: Config, world: World, *, fresh: bool = True) -> Objective:
    return _Tiny(place_model(nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)), config, world))
