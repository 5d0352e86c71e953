"""The file that tells what an archive holds: read, and held to what its readers take for granted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastfgssl.runtime.errors import UserError, in_a_line

FORMAT = "fastfgssl-archive"
VERSION = 2
MANIFEST = "manifest.json"


def read_manifest(path: Path) -> dict:
    """The manifest of the archive in `path`. Raises UserError if there is none that this program can read."""
    try:
        stored = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is not an archive: it has no {MANIFEST}; `fastfgssl prepare` makes one") from None
    except OSError as error:
        raise UserError(f"cannot read {path / MANIFEST}: {error.strerror}", errno=error.errno) from error
    return parse_manifest(stored, path / MANIFEST)


def parse_manifest(stored: bytes, where: Path | str) -> dict:
    """What is in the bytes of a manifest: all that every archive has, in the types that it has there.

    Raises UserError, which names `where` they are from.
    """
    try:
        manifest = json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {in_a_line(error)}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{where} is not an archive of ours: it names another format than {FORMAT}")
    version: Any = manifest.get("version")
    if _is_count(version) and version > VERSION:
        raise UserError(f"{where} has archive version {version}, this program reads {VERSION}: update it")
    for name, fits in _FIELDS.items():
        if not (fits(manifest[name]) if name in manifest else name in _LATER):
            raise UserError(
                f"{where} is damaged: {name!r} is missing or is not what it must be; copy the archive again"
            )
    if manifest["samples"] != sum(shard["samples"] for shard in manifest["shards"]):
        raise UserError(f"{where} is damaged: its shards hold another number of samples; copy the archive again")
    return manifest


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_file(value: Any) -> bool:
    known = isinstance(value, dict) and _is_count(value.get("bytes"))
    return known and _is_text(value.get("name")) and _is_text(value.get("sha256"))


def _is_shard(value: Any) -> bool:
    return _is_file(value) and _is_count(value.get("samples")) and _is_text(value.get("index"))


def _are_shards(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_shard, value)) and _is_count(sum(shard["bytes"] for shard in value))


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "version": _is_count,
    "samples": _is_count,
    "shards": _are_shards,
    "table": _is_file,
    "classes": lambda value: value is None or (isinstance(value, list) and all(map(_is_text, value))),
    "labelled": _is_count,
    "groups": _is_count,
    "quarantined": _is_count,
    "bit_depth": lambda value: _are_counts(value) and all(bits in ("8", "16") for bits in value),
    "formats": _are_counts,
    "short_side": lambda value: value is None or _is_count(value),
    "accounting": _is_file,
    "inputs": _are_counts,
    "report": _is_file,
    "pixel_hash": _is_text,
}
"""What each has to be, since it is used without further looks."""
_LATER = ("accounting", "inputs", "report", "pixel_hash")  # which earlier archives have not
