"""Promises that a search for hostile bytes tries to break."""

from __future__ import annotations


class Broken(AssertionError):
    """A promise that is not kept."""


def require(kept: bool, promise: str) -> None:
    if not kept:
        raise Broken(promise)
