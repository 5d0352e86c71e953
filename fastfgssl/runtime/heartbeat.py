"""Which rank stopped, and where: each tells the others' store what it does, and one that waits in vain reads it there.

A thread of each rank writes some hundred bytes when that changes, and every second. Nothing is read, and no rank or
device is waited for, while steps are made. A rank whose process is stopped or gone falls silent; one that hangs goes
on telling for how long. So does the process that keeps the store: then that is who is named.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastfgssl.runtime.asked import Asked, NoAnswer
from fastfgssl.runtime.errors import LostRank

log = logging.getLogger(__name__)

STAGES = ("starting", "making batch", "making step", "reporting", "saving", "ended")
"""What ranks do, in the order of a step."""
_INTERVAL = 1.0  # seconds, at most, between two beats
_PAUSE = 0.02  # seconds, at least, between them, for up to 20 ranks; for more as much more
_LOOK_AFTER = 5.0  # seconds in one stage, after which a rank looks what the others do
_SILENT_AFTER = 10.0  # seconds without a beat, or an answer, that tell who is gone from who is busy
_SHOWN_IDS = 8
_GONE = "is gone"
_VERDICT = "verdict"  # what the first rank that ended for another has said


class Beat(NamedTuple):
    """What a rank has told last."""

    rank: int
    number: int
    """Of its beats."""
    step: int
    stage: int
    ids: list[int]
    """The first of the samples it has in hand."""
    age: float
    """Seconds that it had been at this when it told so."""

    @property
    def place(self) -> tuple[int, int]:
        return self.step, self.stage

    @property
    def doing(self) -> str:
        samples = f" with samples {', '.join(map(str, self.ids))}, ..." if self.ids else ""
        return f"{STAGES[self.stage]} {self.step or ''}".rstrip() + samples


class Heartbeats:
    """This rank's, and what is known of the others'.

    store: of all ranks; None where there is only one. keeper: who keeps it, in words, where that is another process.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, store: Any = None, *, keeper: str = "", timeout: float = 0.0
    ) -> None:
        self._rank, self._size, self._keeper = rank, size, keeper
        self._store = None if store is None else Asked(store)
        self._store_says: str | None = None  # why it has no answer; None while it has
        self._verdict = ""
        self._count = 0
        self._heard: dict[int, tuple[Beat, float]] = {}  # and when it was new
        self._is_closed, self._changed = False, threading.Event()
        self._is_told = False
        self.set_timeout(timeout)
        self.at("starting", 0)
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        if store is not None:
            self._thread.start()

    def at(self, stage: str, step: int, ids: Sequence[int] | np.ndarray = ()) -> None:
        """Notes what this rank does from now on; costs no more than that."""
        self._state = (STAGES.index(stage), step, ids, time.monotonic())
        self._changed.set()

    def set_timeout(self, seconds: float) -> None:
        """After how long in one stage this rank ends, if another is silent or has stopped before it."""
        self._timeout = seconds

    def end(self) -> None:
        """Tells the others that this rank is through, so that none waits for it."""
        if self._store is not None:
            self.at("ended", self._state[1])
            self._do(self._beat)

    def close(self) -> None:
        """Ends the thread: Python must not end while it is in a call of the store's."""
        self._is_closed = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(2 * _INTERVAL)

    @contextmanager
    def naming_lost_ranks(self) -> Iterator[None]:
        """Adds to a `LostRank` of the body which rank it is, and where it stopped."""
        try:
            yield
        except LostRank as error:
            if self._store is None:
                raise
            self.set_timeout(math.inf)  # this rank ends by itself
            lost = self._look_twice()
            said = self._words(lost)
            self._end_for(lost, said)
            raise LostRank(f"{error}; {said}") from None

    def _run(self) -> None:
        """The thread: until the run ends."""
        while not self._is_closed:
            self._changed.clear()
            self._do(self._beat)
            time.sleep(max(_PAUSE, self._size / 1000))
            self._changed.wait(min(_INTERVAL, self._timeout / 8))
            waited = time.monotonic() - self._state[3]
            if math.isinf(self._timeout):
                continue
            if waited < min(_LOOK_AFTER, self._timeout / 4):
                self._is_told = False
                self._heard.clear()
                continue
            self._do(self._read)
            lost = self._lost(waited)
            if lost and not self._is_told:
                self._is_told = True
                self._show(lost)
            if (lost or self._store_says) and waited > self._timeout:
                self._leave(lost, waited)

    def _do(self, act: Callable[[], None]) -> None:
        """Asks the store, or notes why it does not answer: its process may have ended, or be stopped."""
        if self._store_says == _GONE:
            return
        try:
            act()
            self._store_says = None
        except NoAnswer:
            self._store_says = "does not answer: it is stopped, or its machine is gone"
        except (RuntimeError, OSError, ValueError):
            self._store_says = _GONE

    def _ask(self, name: str, *arguments: Any) -> Any:
        assert self._store is not None
        return self._store.ask(name, *arguments, seconds=min(_SILENT_AFTER, self._timeout / 2))

    def _beat(self) -> None:
        stage, step, ids, since = self._state
        self._count += 1
        ids = [int(sample) for sample in ids[:_SHOWN_IDS]]
        self._ask("set", _key(self._rank), json.dumps([self._count, step, stage, ids, time.monotonic() - since]))

    def _read(self) -> None:
        ranks = [rank for rank in range(self._size) if self._ask("check", [_key(rank)])]
        texts = self._ask("multi_get", [_key(rank) for rank in ranks])
        now = time.monotonic()
        for rank, text in zip(ranks, texts, strict=True):
            beat = Beat(rank, *json.loads(text))
            if rank not in self._heard or self._heard[rank][0].number != beat.number:
                self._heard[rank] = (beat, now)
        if self._ask("check", [_VERDICT]):
            self._verdict = self._ask("get", _VERDICT).decode()

    def _lost(self, waited: float) -> list[int]:
        """Ranks that are silent, or as long as this one at something that comes before; none if the store is."""
        if self._store_says:
            return []
        now, place = time.monotonic(), (self._state[1], self._state[0])
        silent_after = min(_SILENT_AFTER, self._timeout / 2)
        return [
            rank
            for rank, (beat, heard) in self._heard.items()
            if not self._has_ended(rank)
            if now - heard > silent_after or (beat.place < place and beat.age > self._timeout)
        ]

    def _has_ended(self, rank: int) -> bool:
        """Whether it has said so, or is this one."""
        return rank == self._rank or STAGES[self._heard[rank][0].stage] == "ended"

    def _look_twice(self) -> list[int]:
        """Which ranks do not beat any more; for the main thread, after a collective has failed."""
        counts: list[dict[int, int]] = []
        for _ in range(2):
            time.sleep(2.5 * _INTERVAL)
            self._do(self._read)
            counts.append({rank: beat.number for rank, (beat, _) in self._heard.items()})
        if self._store_says:
            return []
        lost = [rank for rank in counts[1] if counts[1][rank] == counts[0].get(rank) and not self._has_ended(rank)]
        self._show(lost)
        return lost

    def _end_for(self, lost: Sequence[int], said: str) -> None:
        """Ends because of other ranks, which are those that the rest is to name, not this one."""
        self._do(lambda: self._ask("set", _VERDICT, said))
        self.end()
        until = time.monotonic() + _SILENT_AFTER
        # where this process keeps the store, it stays until the rest has read that
        while not (self._keeper or self._store_says) and time.monotonic() < until:
            self._do(self._read)
            if all(self._has_ended(rank) or rank in lost for rank in self._heard):
                break
            time.sleep(_PAUSE)

    def _words(self, lost: Sequence[int]) -> str:
        if not lost and self._store_says:
            return self._verdict or f"{self._keeper} {self._store_says}"
        if not lost:
            return self._verdict or "all of them still answer"
        first = min(lost, key=lambda rank: self._heard[rank][0].place)
        beat, heard = self._heard[first]
        others = f"; ranks {', '.join(str(rank) for rank in lost if rank != first)} too" if len(lost) > 1 else ""
        return f"rank {first} stopped, last heard {beat.doing} ({beat.age + time.monotonic() - heard:.0f} s)" + others

    def _show(self, lost: Sequence[int]) -> None:
        """Logs the table, on the first of the ranks that are left."""
        if self._rank != min(rank for rank in range(self._size) if rank not in lost):
            return
        now = time.monotonic()
        rows = [f"{'rank':>5} {'step':>8}  {'stage':<14}{'for':>8}  {'heard':>10}  samples"]
        for rank in range(self._size):
            if rank not in self._heard:
                rows.append(f"{rank:>5} {'':>8}  {'not heard of':<14}")
                continue
            beat, heard = self._heard[rank]
            samples = ", ".join(map(str, beat.ids)) + (", ..." if beat.ids else "")
            rows.append(
                f"{rank:>5} {beat.step:>8}  {STAGES[beat.stage]:<14}{beat.age + now - heard:>6.0f} s "
                f"{now - heard:>6.0f} s ago  {samples}"
            )
        log.warning("ranks wait for %s:\n%s", ", ".join(map(str, lost)) or "each other", "\n".join(rows))

    def _leave(self, lost: Sequence[int], waited: float) -> None:
        """Ends this process from its thread: the main one waits for what never comes."""
        stage, step = STAGES[self._state[0]], self._state[1]
        where = f"rank {self._rank}: " if self._rank else ""
        said = self._words(lost)
        words = f"waited {waited:.0f} s, {stage} at step {step}, for another rank: {said}"
        with suppress(OSError, ValueError):  # nobody may be left to read it
            print(f"error: {where}{words}", file=sys.stderr, flush=True)
        self._end_for(lost, said)
        _dump_flight_recorder(self._rank)
        os._exit(LostRank.exit_code)


def _key(rank: int) -> str:
    return f"rank_{rank}"


def record_flights() -> None:
    """Turns NCCL's flight recorder on, before ranks meet: which collectives each has begun and ended, at a time-out.

    What the user has set stays, also under the names that torch had for it before.
    """
    for name, before, value in (
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"),
        ("TORCH_FR_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
    ):
        if before not in os.environ:
            os.environ.setdefault(name, value)


def _dump_flight_recorder(rank: int) -> None:
    """Writes what NCCL's recorder has, where it would at a time-out of its own, which this one came before."""
    if not torch.cuda.is_initialized():
        return
    names = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
    prefix = next((os.environ[name] for name in names if name in os.environ), "/tmp/nccl_trace_rank_")
    with suppress(Exception):  # of another torch; nothing is to keep the process
        library: Any = torch._C._distributed_c10d  # whose stubs lack it
        Path(f"{prefix}{rank}").write_bytes(library._dump_nccl_trace())
