"""Writes overrides into a configuration file in place: comments and everything else stay as they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from fastfgssl.config_files import config_to_values, load_config
from fastfgssl.doctor.advice import plain
from fastfgssl.errors import UserError, file_errors


def apply_overrides(file: Path, overrides: dict[str, Any]) -> list[str]:
    """Sets keys of the YAML file to new values, all or none of them; returns a line for each that changed.

    The new text is read back before it replaces the file: it must differ in these keys alone. Raises `UserError` if it
    would not (a file with anchors, say), or cannot be written.
    """
    target = file.resolve()  # the file itself, where `file` is a link to it
    before = config_to_values(load_config(target))
    text = target.read_bytes().decode("utf-8")  # line ends as they are
    for key, value in overrides.items():
        text = set_key(text, key, plain(value))
    partial = target.with_name(f".{target.name}.partial")
    try:
        with file_errors("write", target):
            with partial.open("w", encoding="utf-8", newline="") as opened:
                opened.write(text)
                os.fchmod(opened.fileno(), target.stat().st_mode)
                opened.flush()
                os.fsync(opened.fileno())
        try:
            after = config_to_values(load_config(partial))
        except UserError:
            after = None
        if after != before | overrides:
            raise UserError(
                f"{file}: its YAML is of a kind that cannot be changed in place; set {', '.join(overrides)}"
            )
        with file_errors("write", target):
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return [
        f"{key}: {plain(before[key])} -> {plain(value)}" for key, value in overrides.items() if before[key] != value
    ]


def set_key(text: str, key: str, value: str) -> str:
    """The YAML `text` with the dotted `key` set to `value`: replaced where it stands, else added to its section."""
    root = yaml.compose(text, yaml.BaseLoader)
    section, _, name = key.rpartition(".")
    place = _value_of(root, section) if section else root
    for mapping, wanted in ((root, key), (place, name)):
        node = _value_of(mapping, wanted)
        if node is not None:
            start, end = node.start_mark.index, node.end_mark.index
            gap = "" if start == 0 or text[start - 1].isspace() else " "  # a key without a value ends at its colon
            return f"{text[:start]}{gap}{value}{text[end:]}"
    if isinstance(place, yaml.MappingNode) and place.value:
        return _added(text, place, f"{name}: {value}")
    return _added(text, root, f"{key}: {value}")


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
