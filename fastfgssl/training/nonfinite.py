"""Losses and gradients that are not finite: the update is skipped on the device, and the host learns of it later.

Under a loss scale (float16) the scaler skips it and lowers the scale, which mends what was too large for that type
alone: such steps are counted, and end no run.

Nothing waits for it: a flag of each update stays on the device until the host meets the device anyway, at a report or
a checkpoint. Ranks decide alike, from gradients that they have exchanged.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastfgssl.objectives.base import Objective
from fastfgssl.runtime.agreement import shared_errors
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import write_whole
from fastfgssl.training.hooks import Run, spared

log = logging.getLogger(__name__)
_UNREAD = 4096  # steps whose flags wait on the device; those before them are forgotten, skipped as they are
_REMEMBERED = 256  # steps whose samples are known when the host learns of them


RESCALED, SKIPPED = 1, 2


class Diverged(UserError):
    """Too many updates in a row were not finite, on every rank alike."""


class Guard:
    """Skips the updates of one optimiser whose gradients are not finite."""

    def __init__(self, optimizer: Optimizer, objective: Objective, scaler: torch.amp.GradScaler) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        self._skips = getattr(optimizer, "_step_supports_amp_scaling", False)  # apex's do not
        # those of averages and targets too, which take over what a network's have become
        own = (value for value in vars(objective).values() if isinstance(value, nn.Module))
        of_modules = [module.buffers() for module in (objective.model, objective.scored, *objective.updates, *own)]
        buffers = {id(buffer): buffer for each in of_modules for buffer in each}
        self._buffers = [buffer for buffer in buffers.values() if buffer.is_floating_point()]
        self._flags: deque[Tensor] = deque(maxlen=_UNREAD * len(objective.updates))
        self.keep()

    def keep(self) -> None:
        """Remembers running averages: a forward pass that was not finite spoils them."""
        self._kept = [buffer.clone() for buffer in self._buffers]

    def step(self, parameters: Sequence[nn.Parameter], norm: Tensor | None) -> None:
        """The optimiser's step, which changes nothing where a gradient is not finite.

        norm: of all gradients, where it is known.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if norm is None:  # of none, where a backbone is frozen that is all there is
            norm = torch.stack(torch._foreach_norm(gradients or [parameters[0].new_zeros(())]))
        flag = 1 - norm.isfinite().all().float()
        if self._scaler.is_enabled():
            scale = self._scaler._get_scale_async()
            assert scale is not None, "backward has scaled a loss"
            self._flags.append(flag * (1 + (scale <= 1)))
            self._scaler.step(self._optimizer)
            self._scaler.update()
            return
        self._flags.append(SKIPPED * flag)
        if not self._skips:
            self._optimizer.step()
            return
        optimizer: Any = self._optimizer
        optimizer.found_inf = flag  # read by its kernels, on the device
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf

    def read(self, updates: int) -> list[list[int]]:
        """What became of the updates of each step since the last call, of the newest ones; waits for the device.

        0: made; `RESCALED`: skipped, and the loss scale lowered; `SKIPPED`: skipped, and no lower scale would help.
        """
        if not self._flags:
            return []
        flags = torch.stack(list(self._flags)).cpu().reshape(-1, updates).int()
        self._flags.clear()
        if flags.any():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                if not buffer.isfinite().all():
                    buffer.copy_(kept)
        self.keep()
        return flags.tolist()


class NonfiniteSteps:
    """Counts the steps that were skipped, writes nonfinite_step_N.json for each, and ends a run that has diverged."""

    def __init__(self, run: Run, state: dict[str, int] | None = None) -> None:
        """state: that of a run which goes on."""
        self._run = run
        self._made: deque[tuple[int, np.ndarray]] = deque(maxlen=_REMEMBERED)
        self.count, self.in_a_row = (state["count"], state["in_a_row"]) if state else (0, 0)
        self.has_last = False
        """Whether the last step that was settled was skipped."""

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"count": self.count, "in_a_row": self.in_a_row}

    def made(self, step: int, ids: np.ndarray) -> None:
        """Notes the samples of a step."""
        self._made.append((step, ids))

    def settle(self, step: int, flags: Sequence[Sequence[int]], lr: float) -> None:
        """Takes up what `Guard.read` says after `step` steps, on every rank.

        Raises `Diverged` after train.nonfinite_limit in a row.
        """
        longest, last = 0, 0
        bad: dict[int, Sequence[bool]] = {}
        for at, of_updates in enumerate(flags, step - len(flags) + 1):
            self.has_last = any(of_updates)
            self.count += self.has_last
            skipped = [flag == SKIPPED for flag in of_updates]
            self.in_a_row = self.in_a_row + 1 if any(skipped) else 0
            if any(skipped):
                bad[at] = skipped
                longest, last = max(longest, self.in_a_row), at
        if bad:
            with shared_errors(self._run.world):
                if self._run.world.is_main:
                    self._tell(bad, lr)
        if longest >= self._run.config.train.nonfinite_limit:
            raise Diverged(f"the gradients of {longest} steps in a row, to step {last}, are not finite")

    def _tell(self, bad: dict[int, Sequence[bool]], lr: float) -> None:
        run, names = self._run, list(self._run.objective.weights)
        first = min(bad)
        log.warning(
            "step %d: gradients that are not finite, so its update was skipped%s; see nonfinite_step_%d.json",
            first,
            f", as were {len(bad) - 1} of those after it" if len(bad) > 1 else "",
            first,
        )
        made = dict(self._made)
        for step, of_updates in bad.items():
            updates = [index for index, is_bad in enumerate(of_updates) if is_bad]
            record: dict[str, Any] = {
                "step": step,
                "updates": [names[index] if len(names) == len(of_updates) else f"update {index}" for index in updates],
                "lr": lr,
                "samples_of_rank_0": made[step].tolist() if step in made else None,
                "ranks": run.world.size,
            }
            verb = "finetune" if run.config.objective.startswith("supervised.") else "train"
            config = str(run.output / "config.yaml")
            record["replay"] = shlex.join(["fastfgssl", verb, "--config", config, "--replay", str(step)])
            path = run.output / f"nonfinite_step_{step}.json"
            with spared(path):
                write_whole(path, partial(_write, text=json.dumps(record)))


def _write(file: BinaryIO, text: str) -> None:
    file.write(f"{text}\n".encode())


def require_finite(run: Run, step: int, broken: Sequence[str]) -> None:
    """Ends a run that has diverged; `broken` names what is not finite."""
    if broken:
        raise UserError(f"{broken[0]} is not finite at step {step}; {remedy(run)}")


def remedy(run: Run) -> str:
    """What helps a run that has diverged."""
    return (
        f"the checkpoints before it are intact in {run.output / 'checkpoints'}: lower optim.lr, lengthen"
        " optim.warmup_epochs, or try another train.precision"
    )


@contextmanager
def watching(objective: Objective, ids: np.ndarray) -> Iterator[list[str]]:
    """Within the body says of each pass through the network where it first was not finite; waits for the device."""
    found: list[str] = []
    for name, value in objective.model.named_parameters():
        if not value.isfinite().all():
            found.append(f"the weights {name} are not finite before the step")
            break

    def look(name: str, module: nn.Module, _: Any, output: Any) -> None:
        if found or not isinstance(output, Tensor) or output.isfinite().all():
            return
        rows = (~output.detach().flatten(1).isfinite()).any(dim=1) if output.ndim > 1 else output.new_ones(1).bool()
        samples = ids[rows.cpu().numpy()].tolist() if len(rows) == len(ids) else []
        of_samples = f", of samples {', '.join(map(str, samples[:8]))}" if samples and len(samples) < len(ids) else ""
        found.append(f"the output of {name} ({type(module).__name__}){of_samples}")

    handles = [
        module.register_forward_hook(partial(look, name))
        for name, module in objective.model.named_modules()
        if not list(module.children())
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def broken_gradient(model: nn.Module) -> str | None:
    """The last of the parameters whose gradient is not finite: backward met it first."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    return names[-1] if names else None
