"""What the configuration of a run means for a step: its learning rate, and whether the backbone is frozen."""

from __future__ import annotations

import logging

from torch.optim import Optimizer

from fastfgssl.training.hooks import Run
from fastfgssl.training.schedule import learning_rate_factor, set_learning_rate

log = logging.getLogger(__name__)


def set_rates(run: Run, optimizer: Optimizer, step: int) -> None:
    """Gives every group its learning rate for the step after `step` steps."""
    config = run.config
    factor = learning_rate_factor(
        step,
        steps=run.steps,
        warmup_steps=_steps_of(config.optim.warmup_epochs, run),
        final=config.optim.final_lr,
    )
    set_learning_rate(optimizer, run.lr_factor * factor)


def is_frozen(run: Run, step: int) -> bool:
    """Whether the step after `step` steps leaves the backbone's weights as they are."""
    return step < _steps_of(run.config.optim.freeze_epochs, run)


def warn_of_lengths(run: Run) -> None:
    """Says which parts of a run are as long as all of it, or longer."""
    optim = run.config.optim
    if (steps := _steps_of(optim.warmup_epochs, run)) > run.steps:
        _warn("optim.warmup_epochs", optim.warmup_epochs, steps, run, "the learning rate does not reach its peak")
    if (steps := _steps_of(optim.freeze_epochs, run)) >= run.steps > 0:
        _warn("optim.freeze_epochs", optim.freeze_epochs, steps, run, "the backbone is never trained")


def _warn(key: str, epochs: float, steps: int, run: Run, so: str) -> None:
    log.warning("%s = %g: is %d steps, and the run has %d: %s", key, epochs, steps, run.steps, so)


def _steps_of(epochs: float, run: Run) -> int:
    return round(epochs * (run.num_samples / run.config.train.batch_size))
