"""What labels say, by the names of images."""

from __future__ import annotations

from typing import NamedTuple

from fastfgssl.archive.labels.assignment import Facts, Labels
from fastfgssl.archive.listing import Listing


class Said(NamedTuple):
    """`Labels` by the names of images."""

    facts: dict[str, Facts]
    """Of each image of which anything is said."""
    classes: list[str]
    rows: int
    unmatched: list[str]
    missing: str


def by_name(labels: Labels, found: Listing) -> Said:
    facts = {}
    for row, entry in zip(found.images.tolist(), found.entries, strict=True):
        words = (column.words[column.code[row]] if column.code[row] >= 0 else None for column in labels.said)
        facts[entry.name] = Facts(*words)
    return Said({name: said for name, said in facts.items() if any(said)}, *labels[1:])
