"""Shards of an archive in an object store are brought before they are read, since it is known which come next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from fastfgssl.archive.cache import FetchStopped
from fastfgssl.archive.manifest import Archive, Shards
from fastfgssl.data.open_files import OPEN_SHARDS
from fastfgssl.data.order import Slots
from fastfgssl.runtime.errors import UserError

_STREAMS = 8  # shards on their way at once


class FetchAhead:
    """Brings the shards that steps `start` to `stop` - 1 read, in that order, until they take half of the cache.

    The other half is what other ranks are ahead or behind, and what nobody has needed for longest. What cannot be
    brought is left to the reader, which says why.
    """

    def __init__(
        self, archive: Archive, shards: Shards, slots: Callable[[int], Slots], *, start: int, stop: int
    ) -> None:
        self._archive, self._shards, self._slots = archive, shards, slots
        self._last: dict[int, int] = {}  # the last step, of those looked at, that reads a shard
        self._reached = start
        self._moved = threading.Condition()
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(_STREAMS, "fastfgssl-fetch")
        self._follower = threading.Thread(target=self._follow, args=(start, stop), name="fastfgssl-fetch", daemon=True)
        self._follower.start()

    def slots(self, step: int) -> Slots:
        """The samples of a step that is about to be read: shards that only earlier ones needed have had their time."""
        with self._moved:
            self._reached = step
            self._moved.notify()
        OPEN_SHARDS.let_go_of_removed()
        return self._slots(step)

    def close(self) -> None:
        """Ends what is on its way."""
        self._stop.set()
        with self._moved:
            self._moved.notify()
        self._follower.join()
        self._threads.shutdown(cancel_futures=True)

    def _follow(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            with self._moved:
                while not (self._stop.is_set() or step <= self._reached or self._has_room()):
                    self._moved.wait()
            if self._stop.is_set():
                return
            for shard in self._archive.shards_of(self._slots(step).ids).tolist():
                if shard not in self._last:
                    self._threads.submit(self._bring, shard)
                self._last[shard] = step

    def _has_room(self) -> bool:
        self._last = {shard: step for shard, step in self._last.items() if step >= self._reached}
        return 2 * int(self._archive.shard_bytes[list(self._last)].sum()) < self._shards.nbytes

    def _bring(self, shard: int) -> None:
        with suppress(FetchStopped, UserError), self._shards.present(shard, self._stop):
            pass
