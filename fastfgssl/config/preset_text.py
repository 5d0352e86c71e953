"""A view preset as text: the name of a built-in one, or YAML in braces, to which a user's file is brought.

A file, such as

    base: dermoscopy          # what is not said is as there; without a base nothing is done to a view
    puzzle:
      jitter: {hue: 0}
    anchor: {crop: null, vertical_flip: 0}
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from functools import cache
from typing import Any

import yaml

from fastfgssl.config.convert import convert, is_null
from fastfgssl.config.presets import PLAIN, PRESETS
from fastfgssl.config.section import field_types
from fastfgssl.config.text_loader import TextLoader
from fastfgssl.config.views import Preset
from fastfgssl.runtime.errors import UserError, nearest, require_one_of

_KEY = "data.views"
_BASE = "base"


@cache
def find_preset(text: str) -> Preset:
    """The built-in preset of that name, or the one that YAML in braces describes.

    Raises `UserError` that names the nearest preset, or the key of what is wrong in a description.
    """
    if text in PRESETS:
        return PRESETS[text]
    if not text.startswith("{"):
        names = ", ".join(PRESETS)
        raise UserError(f"{_KEY} = {text!r}: must be one of {names}, or a .yaml file of yours{nearest(text, PRESETS)}")
    try:
        values = yaml.load(text, TextLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{_KEY} = {text!r} is not YAML: {' '.join(str(error).split())}") from None
    return preset_from_values(values)


def preset_from_values(values: Any) -> Preset:
    """The preset that the keys of a YAML file describe; values may still be text.

    Raises `UserError` that names the key of what is wrong, and the nearest one for a key that there is not.
    """
    if not isinstance(values, dict) or not values:
        raise UserError(f"{_KEY}: must hold keys such as {_BASE}, puzzle and anchor, not {_describe(values)}")
    views, base = dict(values), PLAIN
    if _BASE in views:
        name = views.pop(_BASE)
        require_one_of(f"{_KEY}.{_BASE}", name, PRESETS)
        base = PRESETS[name]
    preset = _changed(base, views, _KEY, also=(_BASE,))
    preset.check(_KEY)
    return preset


def text_of(preset: Preset) -> str:
    """One line of YAML in braces that `find_preset` reads back: equal presets have equal lines."""
    values = _plain(preset)
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=math.inf).strip()


def _changed(part: Any, values: Any, key: str, *, also: tuple[str, ...] = ()) -> Any:
    """A part of a preset with what `values` say in the place of its fields; also: keys that may stand beside these."""
    return dataclasses.replace(part, **_fields(type(part), values, key, lambda name: getattr(part, name), also))


def _made(cls: type, values: Any, key: str) -> Any:
    """A part of a preset that is not there yet."""
    fields = _fields(cls, values, key, lambda name: None, ())
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in fields:
            raise UserError(f"missing key {key}.{field.name}")
    return cls(**fields)


def _fields(cls: type, values: Any, key: str, now: Callable[[str], Any], also: tuple[str, ...]) -> dict[str, Any]:
    """The fields that `values` give, with the types that they have in `cls`."""
    types = field_types(cls)
    if not isinstance(values, dict):
        raise UserError(f"{key}: must hold keys such as {', '.join(list(types)[:3])}, not {_describe(values)}")
    fields = {}
    for name, value in values.items():
        if name not in types:
            known = [*also, *types]
            hint = nearest(name, known) or f"; known are {', '.join(known)}"
            raise UserError(f"unknown key {f'{key}.{name}'!r}{hint}")
        fields[name] = _field(types[name], value, f"{key}.{name}", now(name))
    return fields


def _field(hint: Any, value: Any, key: str, now: Any) -> Any:
    options = (hint, *typing.get_args(hint))
    part = next((option for option in options if dataclasses.is_dataclass(option)), None)
    if part is None:
        return convert(key, value, hint)
    if type(None) in options and is_null(value):
        return None
    return _made(typing.cast(type, part), value, key) if now is None else _changed(now, value, key)


def _plain(part: Any) -> Any:
    """A part as YAML has it; a field that is as it is by itself is left out."""
    if isinstance(part, tuple):
        return list(part)
    if not dataclasses.is_dataclass(part):
        return part
    fields = ((field, getattr(part, field.name)) for field in dataclasses.fields(part))
    return {field.name: _plain(value) for field, value in fields if value != field.default}


def _describe(values: Any) -> str:
    if not values:
        return "nothing"
    return repr(values) if isinstance(values, str) else f"a {type(values).__name__}"
