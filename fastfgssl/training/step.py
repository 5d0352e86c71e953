"""One optimisation step: what the trainer repeats, and what doctor and benchmarks time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from fastfgssl.config.schema import Config
from fastfgssl.data.batch import Batch
from fastfgssl.objectives.base import Objective, memory_format
from fastfgssl.runtime.distributed import World, data_parallel
from fastfgssl.runtime.precision import Precision
from fastfgssl.training.accumulation import Numerics, accumulate_cached, accumulate_mean
from fastfgssl.training.nonfinite import Guard
from fastfgssl.training.optim import build_optimizer, load_optimizer_state


class TrainingStep:
    """An objective, its optimiser, and the updates that are made of each batch.

    The weights of `objective.model` are the same on every rank.
    """

    def __init__(self, objective: Objective, config: Config, world: World) -> None:
        train = config.train
        self.objective = objective
        self.optimizer = build_optimizer(objective.model, config.optim)
        self._wrapped = [
            data_parallel(update, world, gradient_dtype=train.gradient_dtype) for update in objective.updates
        ]
        self._accumulate = accumulate_cached if config.loss.cache and train.accumulate > 1 else accumulate_mean
        self._micro_batches, self._layout = train.accumulate, memory_format(train)
        precision = Precision(train.precision, world.device)
        self._numerics = Numerics(precision, torch.amp.GradScaler(world.device.type, enabled=precision.scales_loss))
        self._clip_norm = config.optim.clip_norm
        self.guard = Guard(self.optimizer, objective, self._numerics.scaler)

    def __call__(
        self, batch: Batch, *, progress: float = 0.0, log: bool = False, freeze_backbone: bool = False
    ) -> dict[str, Tensor]:
        """Makes every update of `batch`; returns their logs, on the device, which may be at work still.

        progress: the share of the run that is done with this step; log: with what is worth its time only where it is
        reported; freeze_backbone: leaves its weights, and what the optimiser knows of them, as they are.
        """
        logs: dict[str, Tensor] = {}
        for of_update in self.gradients(batch, log=log):
            logs |= of_update
            # the weights that this update trains
            with record_function("optimizer"):
                parameters, norm = list(self.objective.model.parameters()), None
                if freeze_backbone:
                    _drop_gradients(self.objective.model)
                if self._clip_norm:
                    self._numerics.scaler.unscale_(self.optimizer)
                    norm = nn.utils.clip_grad_norm_(parameters, self._clip_norm)
                self.guard.step(parameters, norm)
        self.objective.after_step(progress)
        return logs

    def gradients(self, batch: Batch, *, log: bool = False) -> Iterator[dict[str, Tensor]]:
        """Leaves the gradients of each update of `batch` with its parameters in turn; yields its logs."""
        micro_batches = batch.in_layout(self._layout).chunk(self._micro_batches)
        for update, wrapped in zip(self.objective.updates, self._wrapped, strict=True):
            self.optimizer.zero_grad()
            # forward, loss, backward; ranks exchange gradients
            with self._numerics.precision.arithmetic():
                logs = self._accumulate(update, wrapped, micro_batches, self._numerics, log=log)
            yield logs

    def skipped(self) -> list[list[int]]:
        """Which updates of each step since the last call were not made, see `Guard.read`; waits for the device."""
        return self.guard.read(len(self.objective.updates))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of a step: `model`, `objective`, `optimizer` and `scaler`."""
        return {
            "model": self.objective.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._numerics.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`; further keys are ignored. Every rank loads the same."""
        self.objective.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self._numerics.scaler.load_state_dict(state["scaler"])
        self.guard.keep()


def _drop_gradients(model: nn.Module) -> None:
    """Of the backbone: an optimiser passes over what has none, decay and momentum included."""
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            parameter.grad = None
