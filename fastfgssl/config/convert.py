"""A value, or the text of one, as the type that a key of the configuration has."""

from __future__ import annotations

import math
import numbers
import os
import types
import typing
from contextlib import suppress
from typing import Any, Literal, Union

from fastfgssl.runtime.errors import UserError, nearest

_WORDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}
_NULL = ("", "~", "null")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def convert(key: str, value: Any, to: Any) -> Any:
    """`value` as the type `to`, one of Python's own, or a `UserError` that names the key and what it must be.

    Takes text as YAML has it (1e-4, true, "8,4,2"), and what programs have: numpy's numbers, paths, lists.
    """
    origin, options = typing.get_origin(to), typing.get_args(to)
    if origin is Literal:
        for option in options:
            if str(option) == str(value) and not isinstance(value, bool):
                return option
        names = [str(option) for option in options]
        raise UserError(f"{key} = {value!r}: must be one of {', '.join(names)}{nearest(str(value), names)}")
    if origin in (Union, types.UnionType):
        if is_null(value) and types.NoneType in options:
            return None
        return convert(key, value, next(option for option in options if option is not types.NoneType))
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not hasattr(parts, "__iter__") or isinstance(parts, (dict, bytes)) or getattr(parts, "ndim", 1) != 1:
            raise UserError(f"{key} = {value!r}: must be a list, such as {_list_of(options[0])}")
        return tuple(convert(key, part, options[0]) for part in parts)
    converted = _convert_scalar(value, to)
    if converted is None:
        raise UserError(f"{key} = {value!r}: must be {_WORDS[to.__name__]}")
    return converted


def is_null(value: Any) -> bool:
    """Whether a value is none, or how YAML writes that."""
    return value is None or (isinstance(value, str) and value.lower() in _NULL)


def type_name(to: Any) -> str:
    """How help calls a type."""
    origin, options = typing.get_origin(to), typing.get_args(to)
    if origin is Literal:
        return " | ".join(str(option) for option in options)
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(option) for option in options)
    if origin is tuple:
        return f"list of {type_name(options[0])}"
    return "null" if to is types.NoneType else to.__name__


def _list_of(item: Any) -> str:
    """An example of a list of such items."""
    names = [str(option) for option in typing.get_args(item)] or {int: ["8", "4", "2"]}.get(item, ["0.5", "0.4", "0.3"])
    return f"[{', '.join(names[:3])}]"


def _convert_scalar(value: Any, to: type) -> bool | int | float | str | None:
    """`value`, or the text of it, as a bool, int, float or str; None if it is not one."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # numpy's and torch's numbers
        value = value.item()
    if to is bool:
        return _BOOLS.get(str(value).lower()) if isinstance(value, (bool, str)) else None
    if isinstance(value, os.PathLike) and to is str:
        value = os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, str)):
        return None
    if to is str:
        return None if "\0" in str(value) else str(value)  # which no name of a file may hold
    if to is int and not isinstance(value, float):
        with suppress(ValueError):  # text such as 1e3
            return int(str(value))
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if to is float:
        return number if math.isfinite(number) else None
    return int(number) if number.is_integer() else None
