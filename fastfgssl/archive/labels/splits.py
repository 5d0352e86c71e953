"""What splits are called."""

from __future__ import annotations

SPLITS = {
    "train": ("train", "training", "fit"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""How splits may be called, in small or capital letters."""


def standard_split(name: str) -> str | None:
    """train, val or test, by whatever name (`SPLITS`); None if it is none of them."""
    return next((split for split, names in SPLITS.items() if name.strip().lower() in names), None)
