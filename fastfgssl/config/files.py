"""Configuration from YAML files and `key.sub=value` overrides, and back to YAML.

Later sources win. YAML gives the structure alone: every value stays the text that was written until the type of its
field converts it, since YAML itself takes `1e-4` for a string, `007` for 7 and `2024-01-15` for a date. An unknown key
is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from fastfgssl.config.convert import convert, is_null
from fastfgssl.config.preset_text import preset_from_values, text_of
from fastfgssl.config.schema import Config
from fastfgssl.config.section import field_types
from fastfgssl.config.text_loader import TextLoader
from fastfgssl.runtime.errors import UserError, nearest
from fastfgssl.runtime.files import user_path, write_whole

MEANT_BEFORE = {"data.view_sizes": "pixels"}
"""What a run meant that began before a key existed, where that is not the key's default: the run goes on so."""

_VIEWS = "data.views"
_ALTERNATIVES = {"train.steps": "train.epochs", "train.epochs": "train.steps"}
_PACKAGE = Path(__file__).parents[1]
# as they are installed, and in a checkout
_CONFIGS = next((path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()), _PACKAGE)


class Key(NamedTuple):
    """A leaf of the configuration."""

    name: str
    """With its section: optim.lr."""
    type: Any
    default: Any
    is_required: bool


def load_config(file: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies overrides such as `optim.lr=1e-3` or `model.grids=[8,4,2]`.

    file: a path, or the name of a configuration that comes with the package, such as `paper`. Raises `UserError`
    naming the file and the key for anything that is not a valid configuration.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides = {overrides!r}: must be a list of key=value, such as [{overrides!r}]")
    flat = _read_file(_find(file))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r}: must be key=value, such as train.batch_size=64")
        # a run is as long as was said last: steps given on the command line replace the file's epochs
        flat[key] = _read_override(key, text)
        if not is_null(flat[key]):
            flat.pop(_ALTERNATIVES.get(key, ""), None)
    views = flat.get(_VIEWS)
    if isinstance(views, str) and views.endswith((".yaml", ".yml")):
        flat[_VIEWS] = _read_preset(user_path(views))
    return config_from_values(flat)


def config_of_run(values: dict[str, Any]) -> Config:
    """The `Config` that a run has stored: a key that is younger than the run has what was meant before it existed."""
    return config_from_values(MEANT_BEFORE | values)


def config_from_values(flat: dict[str, Any]) -> Config:
    """Builds a `Config` from dotted keys, such as `{"data.path": "archive", "train.steps": 10}`."""
    known, sections = {key.name: key for key in list_keys()}, _sections()
    for name in flat:
        if name in sections:
            raise UserError(
                f"{name} = {flat[name]!r}: {name} is a section; set one of its keys, such as {name}.NAME=VALUE"
            )
        if name not in known:
            raise UserError(f"unknown key {name!r}{_nearest_key(name, [*known, *sections])}")
    for key in known.values():
        if key.is_required and key.name not in flat:
            from fastfgssl.config.help import meaning  # reads sources, which only this message needs

            raise UserError(f"missing key {key.name}: {meaning(key.name)}")
    return _build(Config, {name: convert(name, value, known[name].type) for name, value in flat.items()}, "")


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
    text = yaml.safe_dump(nested, sort_keys=False)
    write_whole(file, lambda opened: opened.write(text.encode()))


@cache
def list_keys(cls: type = Config, prefix: str = "") -> tuple[Key, ...]:
    """Every leaf of the configuration, in the order of its sections."""
    keys: list[Key] = []
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name, hint in field_types(cls).items():
        if dataclasses.is_dataclass(hint):
            keys += list_keys(cast(type, hint), f"{prefix}{name}.")
        else:
            field = fields[name]
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            keys.append(Key(f"{prefix}{name}", hint, field.default, required))
    return tuple(keys)


def _find(file: str | Path) -> Path:
    """The file, or that of a configuration of the package which is called so."""
    path = user_path(file)
    if path.suffix or path.name != str(path) or path.is_file():
        return path
    known = {config.stem: config for config in sorted(_CONFIGS.glob("*.yaml"))}
    if path.name not in known:
        hint = nearest(path.name, known)
        raise UserError(f"no configuration is called {file}: give a file, or one of {', '.join(known)}{hint}")
    return known[path.name]


def _read_file(file: Path) -> dict[str, Any]:
    with _file_errors(file, "configuration"):
        values = yaml.load(file.read_text(encoding="utf-8"), TextLoader)
        if not isinstance(values, dict):
            raise UserError(f"must hold keys such as `data:` and `train:`, not {type(values).__name__}")
        return _flatten(values)


def _read_preset(file: Path) -> str:
    """The view preset of a file as one line of YAML, which a run then holds in the place of the file's name."""
    with _file_errors(file, "view preset"):
        return text_of(preset_from_values(yaml.load(file.read_text(encoding="utf-8"), TextLoader)))


@contextmanager
def _file_errors(file: Path, what: str) -> Iterator[None]:
    """Turns whatever is wrong with a YAML file into one line that names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read the {what} {file}: {reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None


def _read_override(key: str, text: str) -> Any:
    if any(known.name == key and known.type is str for known in list_keys()):
        return text  # a file name may hold what means something to YAML
    try:
        return yaml.load(text, TextLoader)
    except (yaml.YAMLError, UserError):
        raise UserError(f"override {key}={text}: the value is not YAML; quote it") from None


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested mapping; a section without any is left to its defaults."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key == _VIEWS and isinstance(value, dict):  # a preset that is written where it is used
            below = {key: text_of(preset_from_values(value))}
        elif isinstance(value, dict) and value:
            below = _flatten(value, f"{key}.")
        elif key in _sections() and (value == {} or is_null(value)):
            below = {}
        else:
            below = {key: value}
        if twice := flat.keys() & below.keys():
            raise UserError(f"{min(twice)} is given twice; keep one of the two")
        flat |= below
    return flat


def _sections() -> set[str]:
    """Keys that hold keys."""
    return {key.name.rpartition(".")[0] for key in list_keys()} - {""}


def _walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _build(cls: Any, flat: dict[str, Any], prefix: str) -> Any:
    arguments = {}
    for name, type in field_types(cls).items():
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(type):
            arguments[name] = _build(type, flat, f"{key}.")
        elif key in flat:
            arguments[name] = flat[key]
    return cls(**arguments)


def _nearest_key(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` for the known key nearest to `word`, comparing last parts too (lr for optim.lr)."""
    last = {key.rpartition(".")[2]: key for key in known}
    return nearest(word, known) or nearest(word.rpartition(".")[2], last, shown=last, cutoff=0.75)
