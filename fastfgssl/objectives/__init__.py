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
    """The objective that `config.objective` names, its network on the device. `UserError` if there is none.

    A name with a dot is that of a module of yours which has a `build`, as those of this package have.
    """
    name = config.objective
    builder = _BUILDERS.get(name, name)
    if isinstance(builder, str):
        if name not in _BUILDERS and "." not in name:
            known = f"must be one of {', '.join(_BUILDERS)}, or a module such as package.module"
            raise UserError(f"objective = {name!r}: {known}{nearest(name, _BUILDERS)}")
        try:
            builder = _module_builder(builder)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"objective = {name!r}: {error}; install its package, or name its folder in PYTHONPATH"
            ) from None
    return builder(config, world, fresh=fresh)


def _module_builder(module: str) -> Builder:
    return importlib.import_module(module).build
