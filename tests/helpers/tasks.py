"""Tasks for worker processes, which import what they do from here."""

from __future__ import annotations

import math
import os
import signal
import time

from fastfgssl.archive.building.worker import Death, Watch


class Sleep:
    """Sleeps as many seconds as its task says."""

    def __call__(self, seconds: float, watch: Watch) -> float:
        time.sleep(seconds)
        return seconds


class Act:
    """Does what each item of a task says."""

    def __call__(self, items: tuple, watch: Watch) -> list:
        done = []
        for number, item in enumerate(items):
            watch.begin(number, stage=7)
            if item == "hang":
                time.sleep(100)
            elif item == "disk full":
                raise OSError(28, "No space left on device")
            elif item == "memory full":
                raise MemoryError
            elif item == "defect":
                math.factorial(-1)
            elif isinstance(item, signal.Signals):
                signal.raise_signal(item)
            done.append(item)
        return done


class Dead:
    """Ends the worker before it begins anything."""

    def __call__(self, task: object, watch: Watch) -> None:
        os._exit(3)


def give_up(death: Death) -> None:
    raise AssertionError(death)
