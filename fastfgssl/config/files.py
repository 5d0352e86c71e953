"""Configuration from YAML files and `key.sub=value` overrides, and back to YAML.

Later sources win. YAML gives the structure alone: every value stays the text that was written until the type of its
field converts it, since YAML itself takes `1e-4` for a string, `007` for 7 and `2024-01-15` for a date. An unknown key
is an error that names the nearest known one.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from fastfgssl.config.schema import Config
from fastfgssl.runtime.errors import UserError

_ALTERNATIVES = {"train.steps": "train.epochs", "train.epochs": "train.steps"}
_WORDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}
_NULL = ("", "~", "null")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _TextLoader(yaml.BaseLoader):
    """Reads every scalar as its text, and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep)
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise UserError(f"line {key.start_mark.line + 1}: {key.value} is given twice; keep one of the two")
            seen.add(key.value)
        return mapping


def load_config(file: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies overrides such as `optim.lr=1e-3` or `model.grids=[8,4,2]`.

    Raises `UserError` naming the file and the key for anything that is not a valid configuration.
    """
    flat = _read_file(Path(file))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r}: must be key=value, such as train.batch_size=64")
        # a run is as long as was said last: steps given on the command line replace the file's epochs
        flat.pop(_ALTERNATIVES.get(key), None)
        flat[key] = _read_override(key, text)
    return config_from_values(flat)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _TextLoader)
        if not isinstance(values, dict):
            raise UserError(f"must hold keys such as `data:` and `train:`, not {type(values).__name__}")
        return _flatten(values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read the configuration {file}: {reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None


def _read_override(key: str, text: str) -> Any:
    if any(name == key and field.type is str for name, field in _fields()):
        return text  # a file name may hold what means something to YAML
    try:
        return yaml.load(text, _TextLoader)
    except (yaml.YAMLError, UserError):
        raise UserError(f"override {key}={text}: the value is not YAML; quote it") from None


def config_from_values(flat: dict[str, Any]) -> Config:
    """Builds a `Config` from dotted keys, such as `{"data.path": "archive", "train.steps": 10}`."""
    known, sections = {key: field.type for key, field in _fields()}, _sections()
    for key in flat:
        if key in sections:
            raise UserError(f"{key} = {flat[key]!r}: {key} is a section; set one of its keys, such as {key}.NAME=VALUE")
        if key not in known:
            raise UserError(f"unknown key {key!r}{_nearest(key, [*known, *sections])}")
    for key, field in _fields():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in flat:
            raise UserError(f"missing key {key}: {_docstrings()[key]}")
    return _build(Config, {key: _convert(key, value, known[key]) for key, value in flat.items()}, "")


def config_to_values(config: Config) -> dict[str, Any]:
    """The resolved configuration as dotted keys and plain values (tuples become lists)."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in _walk(config)}


def write_config(config: Config, file: Path) -> None:
    """Writes the resolved configuration as YAML that `load_config` reads back to an equal `Config`."""
    nested: dict[str, Any] = {}
    for key, value in config_to_values(config).items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    file.write_text(yaml.safe_dump(nested, sort_keys=False), encoding="utf-8")


def describe_keys() -> str:
    """One line for each key: name, type, default and what it means, for `--help`."""
    lines = []
    for key, field in _fields():
        default = "required" if field.default is dataclasses.MISSING else f"default {_plain(field.default)}"
        body = f"{_docstrings()[key]} ({_type_name(field.type)}, {default})"
        lines.append(f"  {key}\n" + textwrap.fill(body, 100, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested mapping; a section without any is left to its defaults."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            below = _flatten(value, f"{key}.")
        elif key in _sections() and (value == {} or _is_null(value)):
            below = {}
        else:
            below = {key: value}
        if twice := flat.keys() & below.keys():
            raise UserError(f"{min(twice)} is given twice; keep one of the two")
        flat |= below
    return flat


def _sections() -> set[str]:
    """Keys that hold keys."""
    return {key.rpartition(".")[0] for key, _ in _fields()} - {""}


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() in _NULL)


def _fields(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted key, field with its type resolved) of every leaf of the configuration."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        field.type = hints[field.name]
        if dataclasses.is_dataclass(field.type):
            yield from _fields(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def _walk(config: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _build(cls: type, flat: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = _build(hints[field.name], flat, f"{key}.")
        elif key in flat:
            arguments[field.name] = flat[key]
    return cls(**arguments)


def _convert(key: str, value: Any, to: Any) -> Any:
    """`value` as the type `to`, or a `UserError` that names the key and what it must be."""
    origin, options = typing.get_origin(to), typing.get_args(to)
    if origin is Literal:
        for option in options:
            if str(option) == str(value) and not isinstance(value, bool):
                return option
        names = [str(option) for option in options]
        raise UserError(f"{key} = {value!r}: must be one of {', '.join(names)}{_nearest(str(value), names)}")
    if origin in (Union, types.UnionType):
        if _is_null(value) and types.NoneType in options:
            return None
        return _convert(key, value, next(option for option in options if option is not types.NoneType))
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)):
            raise UserError(f"{key} = {value!r}: must be a list, such as [8, 4, 2]")
        return tuple(_convert(key, part, options[0]) for part in parts)
    converted = _convert_scalar(value, to)
    if converted is None:
        raise UserError(f"{key} = {value!r}: must be {_WORDS[to.__name__]}")
    return converted


def _convert_scalar(value: Any, to: type) -> Any:
    """`value`, or the text of it, as a bool, int, float or str; None if it is not one."""
    if to is bool:
        return _BOOLS.get(str(value).lower()) if isinstance(value, (bool, str)) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if to is str:
        return str(value)
    if to is int and not isinstance(value, float):
        with suppress(ValueError):  # text such as 1e3
            return int(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if to is float:
        return number if math.isfinite(number) else None
    return int(number) if number.is_integer() else None


def _nearest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """`; did you mean ...?` for the known word nearest to `word`, comparing last parts too (lr for optim.lr)."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    if not match:
        last = {key.rpartition(".")[2]: key for key in known}
        match = [last[near] for near in difflib.get_close_matches(word.rpartition(".")[2], last, n=1, cutoff=0.75)]
    return f"; did you mean {match[0]!r}?" if match else ""


def _docstrings(cls: type = Config, prefix: str = "") -> dict[str, str]:
    """The docstring under each field, by dotted key: Python does not keep them, the source does."""
    hints = typing.get_type_hints(cls)
    texts = {}
    body = ast.parse(inspect.getsource(cls)).body[0].body
    for statement, after in itertools.pairwise(body):
        if not isinstance(statement, ast.AnnAssign):
            continue
        name = statement.target.id
        if dataclasses.is_dataclass(hints[name]):
            texts.update(_docstrings(hints[name], f"{prefix}{name}."))
        elif isinstance(after, ast.Expr):
            texts[f"{prefix}{name}"] = inspect.cleandoc(after.value.value)
    return texts


def _plain(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).splitlines()[0]


def _type_name(to: Any) -> str:
    origin, options = typing.get_origin(to), typing.get_args(to)
    if origin is Literal:
        return " | ".join(str(option) for option in options)
    if origin in (Union, types.UnionType):
        return " | ".join(_type_name(option) for option in options)
    if origin is tuple:
        return f"list of {_type_name(options[0])}"
    return "null" if to is types.NoneType else to.__name__
