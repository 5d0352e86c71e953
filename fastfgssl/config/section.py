"""What every section of the configuration does as it is made: convert its values, and check them."""

from __future__ import annotations

import dataclasses
import typing
from functools import cache
from typing import Any, ClassVar

from fastfgssl.config.convert import convert
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.files import expand_home

_MOST = 2**31 - 1
"""What an integer may be: DALI and torch count with 32 bits."""


def require(condition: bool, key: str, value: object, must: str) -> None:
    """Raises `UserError` naming the key, its value and what it must be, unless `condition` holds."""
    if not condition:
        raise UserError(f"{key} = {value!r}: must be {must}")


@cache
def field_types(cls: type) -> dict[str, Any]:
    """The fields of a section, in their order, with their types resolved."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


class Section:
    """A dataclass of the configuration: what it is made of has the types of its fields, whoever makes it."""

    section: ClassVar[str] = ""
    paths: ClassVar[frozenset[str]] = frozenset()
    """Fields that may name a file or folder; `~` in front of one is the home folder."""
    of_64_bits: ClassVar[frozenset[str]] = frozenset()
    """Integers that may be larger than 2^31 - 1."""

    def __post_init__(self) -> None:
        cls: type = self.__class__
        for name, hint in field_types(cls).items():
            key, value = self._key(name), getattr(self, name)
            if dataclasses.is_dataclass(hint):
                kind = typing.cast(type, hint)
                require(isinstance(value, kind), key, value, f"an instance of {kind.__name__}, as load_config makes it")
                continue
            value = convert(key, value, hint)
            if name not in self.of_64_bits:
                for number in value if isinstance(value, tuple) else (value,):
                    require(not isinstance(number, int) or number <= _MOST, key, number, f"at most {_MOST}")
            object.__setattr__(self, name, expand_home(value) if name in self.paths else value)
        self._check()

    def _check(self) -> None:
        """Raises `UserError` for values that do not go together."""

    def _key(self, name: str) -> str:
        return f"{self.section}.{name}" if self.section else name

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            require(value > 0, self._key(name), value, "greater than 0")
