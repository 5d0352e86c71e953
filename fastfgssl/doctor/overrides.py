"""Writes overrides into a configuration file in place: comments and everything else stay as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fastfgssl.config.files import load_config
from fastfgssl.doctor.advice import plain
from fastfgssl.runtime.errors import UserError, check_writable, file_errors


def check_applicable(file: Path) -> None:
    """Raises `UserError` unless `file` can be replaced: to be asked before minutes go into what it is to hold."""
    target = file.resolve()
    check_writable(target)
    check_writable(_partial(target))


def apply_overrides(file: Path, overrides: dict[str, Any], given: Sequence[str] = ()) -> list[str]:
    """Sets keys of the YAML file to new values, all or none of them; returns a line for each that changed.

    given: `key=value` of the command line, which the file may need to be valid; they are not written. The new text is
    read back before it replaces the file: it must mean what the old one means with `overrides` behind it. Raises
    `UserError` if it does not (a file with anchors, say), or cannot be written.
    """
    target = file.resolve()  # the file itself, where `file` is a link to it
    given = [word for word in given if word.partition("=")[0] not in overrides]
    wanted = load_config(target, [*given, *(f"{key}={plain(value)}" for key, value in overrides.items())])
    text = target.read_bytes().decode("utf-8")  # line ends as they are
    lines = []
    for key, value in overrides.items():
        before = text_of(text, key)
        if before != plain(value):
            lines.append(f"{key}: {'not set' if before is None else before} -> {plain(value)}")
            text = set_key(text, key, plain(value))
    partial = _partial(target)
    try:
        with file_errors("write", target):
            with partial.open("w", encoding="utf-8", newline="") as opened:
                opened.write(text)
                os.fchmod(opened.fileno(), target.stat().st_mode)
                opened.flush()
                os.fsync(opened.fileno())
        try:
            after = load_config(partial, given)
        except UserError:
            after = None
        if after != wanted:
            raise UserError(
                f"{file}: its YAML is of a kind that cannot be changed in place; set {', '.join(overrides)}"
            )
        with file_errors("write", target):
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return lines


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def text_of(text: str, key: str) -> str | None:
    """What the YAML `text` has as the value of the dotted `key`; None if it does not set it."""
    node = _find(yaml.compose(text, yaml.BaseLoader), key)
    return None if node is None else text[node.start_mark.index : node.end_mark.index].strip()


def set_key(text: str, key: str, value: str) -> str:
    """The YAML `text` with the dotted `key` set to `value`: replaced where it stands, else added to its section."""
    root = yaml.compose(text, yaml.BaseLoader)
    node = _find(root, key)
    if node is not None:
        start, end = node.start_mark.index, node.end_mark.index
        gap = "" if start == 0 or text[start - 1].isspace() else " "  # a key without a value ends at its colon
        return f"{text[:start]}{gap}{value}{text[end:]}"
    section, _, name = key.rpartition(".")
    place = _value_of(root, section) if section else root
    if isinstance(place, yaml.MappingNode) and place.value:
        return _added(text, place, f"{name}: {value}")
    return _added(text, root, f"{key}: {value}")


def _find(root: yaml.Node | None, key: str) -> yaml.Node | None:
    """The value of a dotted key, which may stand as it is or inside its section."""
    section, _, name = key.rpartition(".")
    place = _value_of(root, section) if section else root
    return _value_of(root, key) or _value_of(place, name)


def _value_of(mapping: yaml.Node | None, name: str) -> yaml.Node | None:
    pairs = mapping.value if isinstance(mapping, yaml.MappingNode) else []
    return next((value for key, value in pairs if key.value == name), None)


def _added(text: str, mapping: yaml.MappingNode, entry: str) -> str:
    """`text` with `entry` as a new last entry of the mapping, on the line after what is its last now."""
    if mapping.flow_style:
        at = mapping.start_mark.index + 1
        return f"{text[:at]}{entry}, {text[at:]}"
    last: yaml.Node = mapping
    while isinstance(last, yaml.CollectionNode) and last.value and not last.flow_style:
        last = last.value[-1][1] if isinstance(last, yaml.MappingNode) else last.value[-1]
    newline = "\r\n" if "\r\n" in text else "\n"
    line = f"{' ' * mapping.value[0][0].start_mark.column}{entry}"
    end = text.find("\n", last.end_mark.index)
    if end < 0:  # the file's last line has no end
        return f"{text}{newline}{line}{newline}"
    return f"{text[: end + 1]}{line}{newline}{text[end + 1 :]}"
