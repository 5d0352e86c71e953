"""The section `optim`: optimiser, learning rates, and what is done to gradients and weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastfgssl.config.section import Section, require


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    section = "optim"

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    """Optimiser; lars is Barlow Twins' choice for training from scratch."""
    backend: Literal["torch", "apex"] = "torch"
    """Whose fused sgd or adamw: torch's, or NVIDIA apex's, which takes train.schedule=joint alone."""
    lr: float = 0.002
    """Peak learning rate of blocks and heads, as it is: nothing scales it with the batch."""
    backbone_lr: float | None = None
    """Peak learning rate of the backbone; null takes lr."""
    bias_lr: float | None = None
    """Peak learning rate of biases and batch norms; null takes that of the part they belong to."""
    momentum: float = 0.9
    """Momentum of sgd and lars; beta 1 of adamw."""
    weight_decay: float = 5e-4
    """L2 term (sgd, lars) or decoupled decay (adamw)."""
    decay_bias_and_norm: bool = False
    """Whether weight decay (and the trust ratio of lars) also applies to biases and batch norms."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up, counted in steps."""
    final_lr: float = 0.0
    """Where the cosine ends, as a fraction of the peak."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each stage of the backbone to the one before it; below 1 what is general moves
    less than what is special."""
    freeze_epochs: float = 0.0
    """Epochs at the start in which the weights of the backbone stay as they are; its batch norms follow the images."""
    clip_norm: float = 0.0
    """Most that the norm of an update's gradients may be, all of them together; 0 leaves them as they are."""
    ema_decay: float = 0.0
    """Share that an average of the weights keeps of itself at each step, as 0.999; the average is then what is scored
    and taken home. 0 for none; of supervised objectives alone."""

    def _check(self) -> None:
        self._require_positive("lr")
        for name in ("backbone_lr", "bias_lr"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"optim.{name}", value, "0 or more, or null")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "in [0, 1)")
        require(self.backend == "torch" or self.name != "lars", "optim.backend", self.backend, "torch for lars")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "0 or more")
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "in (0, 1]")
        for name in ("freeze_epochs", "clip_norm"):
            require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "0 or more")
        require(0 <= self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "in [0, 1)")
        require(0 <= self.final_lr <= 1, "optim.final_lr", self.final_lr, "in [0, 1]")
