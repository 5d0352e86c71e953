"""Objectives: which views meet which loss. One file each; the registry names them."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Protocol

from fastfgssl.config.schema import Config
from fastfgssl.objectives.base import Objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError, nearest


class Builder(Protocol):
    """Makes an objective. fresh: False where a checkpoint will replace the weights, so that none are loaded before."""

    def __call__(self, config: Config, world: World, *, fresh: bool) -> Objective: ...


_BUILDERS: dict[str, str | Builder] = {
    name: f"fastfgssl.objectives.{name.partition('.')[0]}"
    for name in (
        *("fgssl", "fgssl.progressive", "fgssl.joint"),
        *("barlow", "vicreg", "simclr", "byol", "simsiam"),
        *("supervised.progressive", "supervised.joint", "supervised.plain"),
    )
}


def register(name: str, builder: Builder) -> None:
    """Makes `objective=NAME` train what `builder` makes."""
    _BUILDERS[name] = builder


def known_objectives() -> tuple[str, ...]:
    """Names that `objective` may have, beside those of modules."""
    return tuple(_BUILDERS)


def build_objective(config: Config, world: World, *, fresh: bool = True) -> Objective:
    """The objective that `config.objective` names, its network on the device. `UserError` if there is none.

    A name with a dot is that of a module of yours which has a `build`, as those of this package have.
    """
    return find_builder(config.objective)(config, world, fresh=fresh)


def find_builder(name: str) -> Builder:
    """What makes the objective of that name; `UserError` as of `build_objective`."""
    builder = _BUILDERS.get(name, name)
    if isinstance(builder, str):
        if name not in _BUILDERS and not ("." in name and all(part.isidentifier() for part in name.split("."))):
            known = f"must be one of {', '.join(_BUILDERS)}, or a module such as package.module"
            raise UserError(f"objective = {name!r}: {known}{nearest(name, _BUILDERS)}")
        builder = _builder_of(builder, name)
    return builder


def require_trusted(name: str) -> None:
    """Raises `UserError` for an objective of a module that nobody here has named: its code would run.

    Asked where a file names it, as a checkpoint does. A module counts as named once it is imported, or is in
    FASTFGSSL_OBJECTIVES, separated by commas.
    """
    named = os.environ.get("FASTFGSSL_OBJECTIVES", "").split(",")
    if name not in _BUILDERS and name not in sys.modules and name not in named:
        raise UserError(
            f"its objective is {name}, a module whose code would run: where you trust that, import it first, or set"
            f" FASTFGSSL_OBJECTIVES={name}"
        )


def _builder_of(module: str, name: str) -> Builder:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that it imports is missing: its author wants to see where
        raise UserError(
            f"objective = {name!r}: {error}; install its package, or name its folder in PYTHONPATH"
            f"{nearest(name, _BUILDERS)}"
        ) from None
    if not hasattr(found, "build"):
        raise UserError(f"objective = {name!r}: {found.__file__} has no `build(config, world, *, fresh)`")
    return found.build
