"""What is compared: objectives of pretraining, and networks without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastfgssl.config.schema import Config
from fastfgssl.evaluation.pretrained import Pretrained, build_untrained
from fastfgssl.models import Network
from fastfgssl.models.backbone import build_backbone
from fastfgssl.objectives import find_builder, known_objectives
from fastfgssl.runtime.errors import UserError, nearest

UNTRAINED, IMAGENET = "untrained", "imagenet"
NOT_TRAINED = (UNTRAINED, IMAGENET)
"""Random weights of each seed; the weights that torchvision or timm publishes, of which there is one network."""


def require_entrants(config: Config, names: Sequence[str]) -> None:
    """Raises `UserError` unless every name can be compared under `config`, before any of them is trained."""
    trained = [name for name in known_objectives() if not name.startswith("supervised")]
    known = [*trained, *NOT_TRAINED]
    if not names:
        raise UserError(f"no objectives to compare: give some of {', '.join(known)}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"objective {name!r} is named twice; seeds are what repeats it")
        if name in NOT_TRAINED:
            network_of(config, name, config.seed)
        elif name not in trained:
            if "." not in name or name in known_objectives():
                hint = nearest(name, known)
                raise UserError(f"objective {name!r} cannot be compared: give some of {', '.join(known)}{hint}")
            find_builder(name)  # a module of the user's
        else:
            config_of(config, name, config.seed, Path(config.output))


def config_of(config: Config, name: str, seed: int, output: Path) -> Config:
    """The configuration of a run of the objective `name`. `UserError` if it cannot be trained under `config`."""
    try:
        return replace(config, objective=name, seed=seed, output=str(output))
    except UserError as error:
        raise UserError(f"objective {name}: {error}") from None


def of_length(config: Config, steps: int, num_samples: int) -> Config:
    """`config` with so many steps, and its whole schedule shortened or stretched to them, the warmup too."""
    factor = steps / config.train.num_steps(num_samples)
    return replace(
        config,
        train=replace(config.train, steps=steps, epochs=None),
        optim=replace(config.optim, warmup_epochs=factor * config.optim.warmup_epochs),
    )


def network_of(config: Config, name: str, seed: int) -> Pretrained:
    """A network that is not trained: random weights of `seed`, or those of ImageNet, which has no heads.

    Raises `UserError` if ImageNet's cannot be had for the backbone of `config`.
    """
    if name == UNTRAINED:
        config = replace(config, objective="fgssl", seed=seed)
        return Pretrained(build_untrained(config, seed), config, 0, "")
    try:
        config = replace(config, model=replace(config.model, weights="imagenet"))
        network = Network()
        network.backbone = build_backbone(config.model, config.data.image_size)
    except UserError as error:
        raise UserError(f"objective imagenet: {error}; or leave it out of --objectives") from None
    return Pretrained(network, config, 0, "")
