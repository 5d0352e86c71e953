"""Tasks of which none may be left undone, such as the shards of an archive, shared out if they are many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

from fastfgssl.archive.building.worker import Death, Function, Watch
from fastfgssl.archive.building.workers import run_tasks
from fastfgssl.archive.summary import Progress
from fastfgssl.runtime.errors import UserError

OnProgress = Callable[[Progress], None]
_FEW_BYTES = 32 << 20  # of images, which are done with sooner than a worker has started


def do_all(
    function: Function,
    tasks: Iterable[Any],
    number: int,
    *,
    workers: int,
    nbytes: int,
    what: str,
    on_progress: OnProgress,
) -> Iterator[Any]:
    """Yields function(task, watch) of each of a `number` of tasks, as they are done; they are taken as needed.

    nbytes: of the images that they read. what: they make, in words. Raises UserError if workers end again and again.
    """
    if nbytes <= _FEW_BYTES:
        for task in tasks:
            yield function(task, Watch([0.0] * 3))
        return
    deaths = 0

    def again(death: Death) -> Any:
        nonlocal deaths
        deaths += 1
        if deaths > number + 3:
            raise UserError(f"{death.reason} while it made {what}: if memory ran out, take fewer --workers")
        return death.task

    with closing(run_tasks(function, tasks, workers, after_death=again)) as results:
        for done, result in enumerate(results, start=1):
            yield result
            on_progress(Progress(done, number, 0, what))
