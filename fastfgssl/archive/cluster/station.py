"""What a node of a cluster does: it says whether it may take part, and does tasks by processes of its own.

The processes are those of a machine on its own, with the same limits, and end with the station, however that ends.
"""

from __future__ import annotations

import pickle
from collections import deque
from typing import Any, NamedTuple

from fastfgssl import __version__
from fastfgssl.archive.building.worker import Death
from fastfgssl.archive.building.workers import Workers
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.versions import version_of

_DECIDE_BYTES = (
    "imagecodecs",
    "numpy",
    "nvidia-dali-cuda130",
    "openslide-bin",
    "pillow",
    "pyarrow",
    "pydicom",
    "simplejpeg",
)


class Turn(NamedTuple):
    """What has happened at a station."""

    events: list[tuple[int, Any]]
    """Numbers of tasks, and of each its result, or the `Death` of its worker, in which the task is left out."""
    error: Exception | None
    """What ends the whole."""


class Station:
    """An actor. `versions` are those of who asks; `work` is pickled, and opened only if they are this node's too.

    work: the function, the seconds that it may be at one item, and a function that says what hinders this node.
    """

    def __init__(self, versions: dict[str, str | None], work: bytes, workers: int) -> None:
        self._todo: deque[tuple[int, Any]] = deque()
        self._numbers: dict[int, int] = {}  # of tasks, by their identity
        self._problem = _differing(versions)
        if not self._problem:
            function, max_seconds, check = pickle.loads(work)
            self._problem = check()
            self._pool = Workers(function, workers, max_seconds=max_seconds)

    def problem(self) -> str:
        """Why this node cannot take part, as what follows its name in a sentence; empty if it can."""
        return self._problem

    def turn(self, tasks: list[tuple[int, Any]]) -> Turn:
        """Takes tasks, with their numbers, and says what became of those that it has, after a short wait at most."""
        self._todo += tasks
        self._begin()
        try:
            events = self._pool.collect()
        except (OSError, UserError, RuntimeError) as error:
            return Turn([], error)
        self._begin()
        told: list[tuple[int, Any]] = []
        for event in events:
            number = self._numbers.pop(id(event.task))
            told.append((number, event._replace(task=None) if isinstance(event, Death) else event.result))
        return Turn(told, None)

    def _begin(self) -> None:
        while self._todo and self._pool.room():
            number, task = self._todo.popleft()
            self._numbers[id(task)] = number  # the pool keeps the task, and with it its identity
            self._pool.give(task)


def versions_here() -> dict[str, str | None]:
    """Of what decides the bytes of an archive."""
    return {"fastfgssl": __version__} | {name: version_of(name) for name in _DECIDE_BYTES}


def _differing(versions: dict[str, str | None]) -> str:
    here = versions_here()
    for name, wanted in versions.items():
        if here.get(name) != wanted:
            return (
                f"has {name} {here.get(name) or 'not at all'}, this machine {wanted or 'not at all'}: install the same"
                " there, or archives would differ"
            )
    return ""
