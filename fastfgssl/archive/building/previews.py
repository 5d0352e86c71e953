"""Previews of pictures that a worker leaves out, a few of each kind in a part: enough to see whether it was right."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np

from fastfgssl.archive.images.preview import preview
from fastfgssl.archive.outcome import Unusable

_OF_CHUNK = 16


def preview_of(unusable: Unusable) -> dict[str, bytes]:
    """The column of a part's row, if the picture is known."""
    if unusable.picture is None:
        return {}
    pixels = np.asarray(unusable.picture)
    return {"preview": preview(pixels, unusable.levels)}


def keep_few(rows: list[dict]) -> list[dict]:
    """Rows of a part, with `_OF_CHUNK` different previews of each kind of reason."""
    of_kinds: dict[str, dict[str, dict]] = defaultdict(dict)
    for row in rows:
        if "preview" in row:
            of_kinds[kind_of(row["reason"])].setdefault(digest_of(row["preview"]), row)
    kept = {id(of_kind[digest]) for of_kind in of_kinds.values() for digest in sorted(of_kind)[:_OF_CHUNK]}
    for row in rows:
        if "preview" in row and id(row) not in kept:
            del row["preview"]
    return rows


def kind_of(reason: str) -> str:
    """What stands before the first colon."""
    return reason.partition(":")[0]


def digest_of(picture: bytes) -> str:
    """By which a few are chosen among many: at random, but always the same."""
    return hashlib.sha256(picture).hexdigest()
