"""What the configuration of a run means for a step: its learning rate, and whether the backbone is frozen."""

from __future__ import annotations

from torch.optim import Optimizer

from fastfgssl.training.hooks import Run
from fastfgssl.training.schedule import learning_rate_factor, set_learning_rate


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


def _steps_of(epochs: float, run: Run) -> int:
    return round(epochs * (run.num_samples / run.config.train.batch_size))
