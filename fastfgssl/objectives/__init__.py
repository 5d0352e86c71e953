"""Objectives: which views meet which loss. One file each; the registry names them."""

from __future__ import annotations

import importlib
from typing import Protocol

from fastfgssl.config.schema import Config
from fastfgssl.objectives.base import Objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError, nearest


class Builder(Protocol):
    """Makes an objective. fresh: False where a checkpoint will replace the weights, so that none are loaded before."""

    def __call__(self, config: Config, world: World, *, fresh: bool) -> Objective: ...


_BUILDERS: dict[str, str | Builder] = {"fgssl": "fastfgssl.objectives.fgssl"}


def register(name: str, builder: Builder) -> None:
    """Makes `objective=NAME` train what `builder` makes."""
    _BUILDERS[name] = builder


def build_objective(config: Config, world: World, *, fresh: bool = True) -> Objective:
    """The objective that `config.objective` names, its network on the device. `UserError` if there is none."""
    if config.objective not in _BUILDERS:
        hint = nearest(config.objective, _BUILDERS)
        raise UserError(f"objective = {config.objective!r}: must be one of {', '.join(_BUILDERS)}{hint}")
    builder = _BUILDERS[config.objective]
    build: Builder = importlib.import_module(builder).build if isinstance(builder, str) else builder
    return build(config, world, fresh=fresh)
