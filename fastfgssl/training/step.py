"""A step of training without the loop around it: what the trainer repeats, and what doctor and benchmarks time."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import record_function

from fastfgssl.config.schema import Config, Stage
from fastfgssl.data.batch import Batch
from fastfgssl.models import FGSSL
from fastfgssl.models.batch_norm import synchronise_batch_norm
from fastfgssl.runtime.distributed import World
from fastfgssl.training.optim import build_optimizer, load_optimizer_state
from fastfgssl.training.updates import accumulate_gradients, memory_format, plan_updates

HeadValues = dict[Stage, tuple[torch.Tensor, torch.Tensor]]
"""Each head's loss [] and terms [4] (`updates.TERMS`), on the device."""


class TrainingStep:
    """A network, its optimiser, and the updates that are made of each batch.

    model: is moved to the device of `world`, and trained there. Its weights are the same on every rank.
    """

    def __init__(self, model: FGSSL, config: Config, world: World) -> None:
        if config.train.batch_norm == "sync":
            model = synchronise_batch_norm(model, world)
        self.model = model.to(world.device, memory_format=memory_format(config.train)).train()
        self.optimizer = build_optimizer(self.model, config.optim)
        self.updates = plan_updates(self.model, config, world)
        self.updates_made = 0
        self._config = config
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "float16")

    def __call__(self, batch: Batch, *, with_rank: bool = False) -> HeadValues:
        """Makes every update of `batch`; the device may be at work still. with_rank: see `HeadsLoss.losses`."""
        values: HeadValues = {}
        for update in self.updates:
            self.optimizer.zero_grad()
            losses, terms = accumulate_gradients(update, batch, self._config, self._scaler, with_rank=with_rank)
            with record_function("optimizer"):
                self._scaler.step(self.optimizer)
                self._scaler.update()
            self.updates_made += 1
            values.update(zip(update.stages, zip(losses, terms, strict=True), strict=True))
        return values

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of a step: `model`, `optimizer` and `scaler`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`; further keys are ignored. Every rank loads the same."""
        self.model.load_state_dict(state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
