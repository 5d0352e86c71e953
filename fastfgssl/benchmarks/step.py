"""Suite `step`: one training step on resident images, against the plain loop of the published code."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from fastfgssl.benchmarks.anatomy import anatomy
from fastfgssl.benchmarks.finetuning import finetuning
from fastfgssl.benchmarks.measure import Case, Record, Settings, Suite, require_close
from fastfgssl.config.schema import (
    STAGES,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    PrecisionName,
    Schedule,
    TrainConfig,
)
from fastfgssl.data.batch import Batch
from fastfgssl.kernels.cross_correlation.reference import cross_correlation_loss_reference, standardise
from fastfgssl.models import FGSSL, build_model
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.training.optim import build_optimizer
from fastfgssl.training.step import TrainingStep

# pixels, batch, precision, runs, and the network with its name
SIZES: dict[str, tuple[int, int, PrecisionName, int, ModelConfig, str]] = {
    "cpu": (96, 16, "float32", 3, ModelConfig(weights="none"), "resnet50"),
    "cuda": (224, 200, "bfloat16", 10, ModelConfig(weights="none"), "resnet50"),
    "rehearsal": (
        32,
        6,
        "float32",
        1,
        ModelConfig(backbone="resnet18", weights="none", width=0.125, grids=(8, 4, 2), embedding_dim=24, block_dim=16),
        "resnet18 of an eighth of its width",
    ),
}
WEIGHTS = dict(zip(STAGES, (1.0, 1.0, 1.0, 2.0), strict=True))


def run(settings: Settings) -> Iterator[Record]:
    """Each schedule on resnet50 with four heads, full and light blocks; fine-tuning; the optimisers' updates alone."""
    suite, device = Suite("step", settings), settings.device
    on_gpu = device.type == "cuda"
    side, batch_size, precision, runs, network, name = SIZES[settings.scale]
    batch, plain_batch = make_batches(side, batch_size, device, half=on_gpu)
    world = World.alone(device)
    full, light = (
        {
            schedule: make_config(schedule, replace(network, block=block), side, batch_size, precision)
            for schedule in ("progressive", "joint")
        }
        for block in ("full", "light")
    )
    plain = PlainStep(full["joint"], device)
    title = f"{name}, {side} px, batch {batch_size}, {precision}"

    def timed(case: str, step: TrainingStep, baseline: tuple[str, Case], details: dict | None = None) -> Record:
        return suite.compare(
            f"{case}, {title}",
            ours=lambda: step(batch),
            baseline=baseline,
            limit=("one full forward and backward", lambda: plain.one_pass(batch)),
            items=batch_size,
            unit="images/s",
            runs=runs,
            details=details,
        )

    for schedule, config in full.items():
        _check(config, world, batch, plain_batch)
        step, published = make_step(config, world), ("published loop in plain PyTorch", lambda: plain(plain_batch))
        yield timed(schedule, step, published, anatomy(step, batch, precision, device))
    for schedule, config in full.items():
        step = make_step(config, world)
        with_full = ("with full blocks", lambda step=step: step(batch))
        yield timed(f"{schedule} with light blocks", make_step(light[schedule], world), with_full)
    yield from finetuning(suite, full["joint"], batch, title, runs)
    for optimizer in ("sgd", "adamw"):
        yield _optimizer(optimizer, suite)


def _optimizer(name: Literal["sgd", "adamw"], suite: Suite) -> Record:
    """The optimiser's update of the whole network alone: fused, against what torch takes unasked."""
    *_, network, network_name = SIZES[suite.scale]
    model, twin = (build_model(network).to(suite.device) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        parameter.grad = torch.randn_like(parameter)
        other.grad = parameter.grad.clone()
    config = OptimConfig(name=name, lr=1e-3)
    ours = build_optimizer(model, config)
    groups = [{key: group[key] for key in ("lr", "weight_decay")} for group in ours.param_groups]
    for plain, group in zip(groups, build_optimizer(twin, config).param_groups, strict=True):
        plain["params"] = group["params"]
    baseline = torch.optim.SGD(groups, momentum=0.9) if name == "sgd" else torch.optim.AdamW(groups)
    for optimizer in (ours, baseline, ours, baseline):
        optimizer.step()
    require_close(
        f"{name}, fused",
        *(torch.cat([parameter.detach().flatten() for parameter in net.parameters()]) for net in (model, twin)),
        tolerance=1e-6,
    )
    # weights, gradients and state are read once, weights and state written once
    states = 1 if name == "sgd" else 2
    count = sum(parameter.numel() for parameter in model.parameters())
    numbers = torch.zeros(count * (3 + 2 * states) // 2, device=suite.device)
    return suite.compare(
        f"{name}'s update alone, {network_name} with its heads, float32",
        ours=ours.step,
        baseline=("torch's default", baseline.step),
        limit=("as many bytes changed in place", lambda: numbers.add_(1)),
        items=1,
        unit="updates/s",
        runs=15,
    )


def make_config(schedule: Schedule, model: ModelConfig, side: int, batch_size: int, precision: PrecisionName) -> Config:
    return Config(
        data=DataConfig(path="none", image_size=side),
        model=model,
        train=TrainConfig(steps=1, batch_size=batch_size, schedule=schedule, precision=precision),
    )


def make_batches(side: int, batch_size: int, device: torch.device, *, half: bool) -> tuple[Batch, Batch]:
    """The same images as our loader makes them, and as a DataLoader would: contiguous and in float32."""
    generator = torch.Generator(device).manual_seed(0)
    ours = [
        torch.randn(batch_size, 3, side, side, device=device, generator=generator)
        .to(torch.float16 if half else torch.float32)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(5)
    ]
    plain = [images.float().contiguous(memory_format=torch.contiguous_format) for images in ours]
    loaded, contiguous = (
        Batch(anchor, view, tuple(puzzles), np.arange(batch_size)) for anchor, view, *puzzles in (ours, plain)
    )
    return loaded, contiguous


def _check(config: Config, world: World, batch: Batch, plain_batch: Batch) -> None:
    """While weights stand still, every head's loss is that of the plain step, in float32 to its rounding."""
    exact = config.train.precision == "float32"
    still = replace(config, optim=replace(config.optim, lr=1e-12))
    ours, plain = make_step(still, world)(batch), PlainStep(still, world.device)(plain_batch)
    for head, want in zip(STAGES, plain, strict=True):
        require_close(
            f"{config.train.schedule}, head {head}", ours[f"loss_{head}"], want, tolerance=1e-4 if exact else 0.05
        )


def make_step(config: Config, world: World) -> TrainingStep:
    torch.manual_seed(0)
    return TrainingStep(build_objective(config, world), config, world)


class PlainStep:
    """The method as the published loop runs it: four steps, each with full forward passes of both inputs."""

    def __init__(self, config: Config, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model: FGSSL = build_model(config.model, config.data.image_size).to(device).train()
        self._in_our_layout = deepcopy(self.model).to(memory_format=torch.channels_last)
        mixed = config.train.precision != "float32"
        self._autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=mixed)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=config.optim.lr, momentum=0.9)

    def one_pass(self, batch: Batch) -> None:
        """One image through the whole network and back: what no step can do without."""
        self._in_our_layout.zero_grad(set_to_none=True)
        with self._autocast():
            embeddings = self._in_our_layout(batch.anchor, "all")
        embeddings.float().square().sum().backward()

    def __call__(self, batch: Batch) -> torch.Tensor:
        losses = []
        for stage, images in zip(STAGES, (*batch.puzzles, batch.puzzle_view), strict=True):
            self._optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                place = STAGES.index(stage)
                z1, z2 = (self.model(x, STAGES)[place] for x in (images, batch.anchor))
            loss = cross_correlation_loss_reference(
                standardise(z1.float()), standardise(z2.float()), lambd=0.0051, form="barlow"
            )
            (WEIGHTS[stage] * loss).backward()
            self._optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)
