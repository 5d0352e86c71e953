"""Optimisers and their parameter groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastfgssl.config.schema import OptimConfig
from fastfgssl.runtime.errors import UserError


class LARS(Optimizer):
    """SGD with momentum whose step is scaled, tensor by tensor, to the size of the weights it changes.

    Each group's `trust` is eta, the length of the step over that of the weights, before the learning rate; None leaves
    the group to plain SGD. Source: Y. You et al., arXiv 1708.03888, as Barlow Twins uses it (arXiv 2103.03230, app. A).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float | None = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    # GradScaler then leaves it to `step` to divide by `grad_scale`, and to change nothing where `found_inf` is not 0:
    # both are on the device, where it would otherwise have to look, and wait
    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(group, weights, scale, found_inf)
        return loss

    def _step_group(
        self, group: dict[str, Any], weights: list[Tensor], scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """All weights of a group at once: on a GPU a few launches, however many weights there are."""
        gradients: Sequence[Tensor] = [weight.grad for weight in weights if weight.grad is not None]
        if scale is not None:
            gradients = torch._foreach_div(list(gradients), scale)
        updates = torch._foreach_add(list(gradients), weights, alpha=group["weight_decay"])
        if group["trust"] is not None:
            lengths, of_updates = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
            # computed on the device: a Python `if` would wait for it
            ratios = torch.where((lengths > 0) & (of_updates > 0), group["trust"] * lengths / of_updates, 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        velocities = [self._velocity(weight) for weight in weights]
        before = None if found_inf is None else [tensor.clone() for tensor in (*velocities, *weights)]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])
        if found_inf is not None and before is not None:
            for tensor, kept in zip((*velocities, *weights), before, strict=True):
                tensor.copy_(torch.where(found_inf > 0, kept, tensor))

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimiser that `config` describes, over four groups: weights, and biases with norms, of backbone and heads.

    With `optim.layer_decay` below 1 each stage of the backbone has groups of its own. Each group's `peak_lr` is what
    `set_learning_rate` scales; `name` is what metrics call it. Raises `UserError` where `optim.backend` is apex and
    apex or its GPU is missing.
    """
    groups = []
    for part in _parts(model, config):
        for kind, is_weight in (("weights", True), ("bias_and_norm", False)):
            # biases and the scales of norms are the parameters with one axis
            parameters = [parameter for parameter in part.parameters if (parameter.ndim > 1) == is_weight]
            lr = part.lr if is_weight or config.bias_lr is None else config.bias_lr
            lr *= part.factor
            decays = is_weight or config.decay_bias_and_norm
            group = {"params": parameters, "name": f"{part.name}_{kind}", "lr": lr, "peak_lr": lr}
            group["weight_decay"] = config.weight_decay if decays else 0.0
            if config.name == "lars" and not decays:
                group["trust"] = None
            groups.append(group)
    if config.backend == "apex":
        return _build_apex(groups, config)
    # fused: on a GPU few kernels for all parameters, which also take float16's loss scale without waiting for the
    # device; on a CPU each parameter is gone through once
    if config.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
        if config.momentum > 0:
            optimizer.register_step_pre_hook(_begin_momentum)
        return optimizer
    if config.name == "lars":
        return LARS(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


class _Part(NamedTuple):
    name: str
    parameters: list[nn.Parameter]
    lr: float
    factor: float  # of that learning rate, and of that of its biases


def _parts(model: nn.Module, config: OptimConfig) -> list[_Part]:
    """What learning rates tell apart: the backbone, by stage where their rates differ, and everything else."""
    named = dict(model.named_parameters())
    of_backbone = {name: parameter for name, parameter in named.items() if name.startswith("backbone.")}
    heads = [parameter for name, parameter in named.items() if name not in of_backbone]
    lr = config.lr if config.backbone_lr is None else config.backbone_lr
    parts = [_Part("backbone", list(of_backbone.values()), lr, 1.0)]
    if config.layer_decay < 1:
        backbone: Any = model.backbone
        stages: dict[int, list[nn.Parameter]] = {}
        for name, parameter in of_backbone.items():
            stages.setdefault(backbone.stage_of(name.removeprefix("backbone.")), []).append(parameter)
        last = max(stages)
        parts = [
            _Part(
                "backbone" if stage == last else f"backbone_stage_{stage}",
                stages[stage],
                lr,
                config.layer_decay ** (last + 1 - stage),
            )
            for stage in sorted(stages)
        ]
    return [*parts, _Part("heads", heads, config.lr, 1.0)]


def _begin_momentum(optimizer: Optimizer, *_: object) -> None:
    """Gives each parameter that has a gradient a velocity of zero, if it has none: its first step stays what it was.

    The fused SGD takes a group of which all parameters have one or none; an update of `progressive` meets both.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _build_apex(groups: list[dict], config: OptimConfig) -> Optimizer:
    try:
        from apex.optimizers import FusedAdam, FusedSGD
    except ImportError:
        raise UserError(
            "optim.backend = 'apex': apex.optimizers cannot be imported; build it from https://github.com/NVIDIA/apex"
            " (the package apex on PyPI is another), or set optim.backend=torch"
        ) from None
    if not all(parameter.is_cuda for group in groups for parameter in group["params"]):
        raise UserError("optim.backend = 'apex': apex needs a GPU; set optim.backend=torch")
    # a gradient of zeros in place of none would move weights that an update does not train
    try:
        if config.name == "sgd":
            return FusedSGD(groups, lr=config.lr, momentum=config.momentum, set_grad_none=True)
        return FusedAdam(groups, lr=config.lr, betas=(config.momentum, 0.999), set_grad_none=True)
    except (RuntimeError, ImportError) as error:  # apex without its CUDA extensions
        raise UserError(f"optim.backend = 'apex': {error}; build apex with them, or set optim.backend=torch") from None


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Goes on from the `state_dict` of the same optimiser, under whatever layout and implementation it was saved.

    Which implementation is at work is the running one's to say; and fused ones go through weights and state side by
    side as they lie in memory, so the state takes the layout of the weights.
    """
    groups = [
        saved | {key: own[key] for key in ("fused", "foreach") if key in own}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict(state | {"param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)
