"""What each key of the configuration means, for `--help` and for messages."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from functools import cache
from typing import Any

import yaml

from fastfgssl.config.convert import type_name
from fastfgssl.config.files import list_keys
from fastfgssl.config.schema import Config
from fastfgssl.config.section import field_types


def describe_keys() -> str:
    """One paragraph for each key: name, what it means, type and default."""
    lines = []
    for key in list_keys():
        default = "required" if key.is_required else f"default {_plain(key.default)}"
        body = f"{meaning(key.name)} ({type_name(key.type)}, {default})".lstrip()
        lines.append(f"  {key.name}\n" + textwrap.fill(body, 100, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


def meaning(key: str) -> str:
    """What a key means; empty where the program is installed without its sources."""
    return _docstrings(Config).get(key, "")


@cache
def _docstrings(cls: type, prefix: str = "") -> dict[str, str]:
    """The docstring under each field, by dotted key: Python does not keep them, the source does."""
    hints = field_types(cls)
    try:
        definition = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except OSError:
        return {}
    assert isinstance(definition, ast.ClassDef)
    texts: dict[str, str] = {}
    for statement, after in itertools.pairwise(definition.body):
        name = ast.unparse(statement.target) if isinstance(statement, ast.AnnAssign) else ""
        if name in hints:
            if dataclasses.is_dataclass(hints[name]):
                texts.update(_docstrings(hints[name], f"{prefix}{name}."))
            elif isinstance(after, ast.Expr):
                texts[f"{prefix}{name}"] = inspect.cleandoc(ast.literal_eval(after.value))
    return texts


def _plain(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).splitlines()[0]
