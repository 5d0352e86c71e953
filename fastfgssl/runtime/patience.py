"""What a disk or a server refuses now it may not refuse in a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from fastfgssl.runtime.errors import AWAY
from fastfgssl.runtime.signals import stop_is_asked

T = TypeVar("T")

log = logging.getLogger(__name__)

PAUSES = (0.1, 0.5, 2.0)
"""Seconds before what has failed is tried again."""


def patiently(act: Callable[[], T], doing: str = "", *, may_pass: Callable[[Exception], bool] | None = None) -> T:
    """What `act` returns, tried again after each of `PAUSES` while what it raises may pass.

    `act` begins anew each time. doing: is logged then. may_pass: by default of an OSError of `AWAY`; a full disk says
    so, and stays full. Raises what it raised last, or the first that will not pass.
    """
    for pause in PAUSES:
        try:
            return act()
        except Exception as error:
            if not (may_pass or _is_transient)(error):
                raise
            if doing:
                log.warning("cannot %s: %s; tried again in %g s", doing, getattr(error, "strerror", error), pause)
            time.sleep(pause)
    return act()


def _is_transient(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in AWAY


def persistently(act: Callable[[], T], doing: str, seconds: float) -> T:
    """What `act` returns, tried again for `seconds` whatever the system answers, which is said once.

    Once more when a signal asks the program to stop. Raises the last OSError.
    """
    begin = time.monotonic()
    until, pause, told = begin + seconds, 0.2, False
    while True:
        try:
            result = act()
        except OSError as error:
            if time.monotonic() + pause > until or stop_is_asked():
                raise
            if not told:
                log.warning(
                    "cannot %s: %s; training pauses, and this is tried again for %.0f s",
                    doing,
                    error.strerror or error,
                    seconds,
                )
                told = True
            again = time.monotonic() + pause
            while time.monotonic() < again and not stop_is_asked():
                time.sleep(0.1)
            pause = min(2 * pause, 10.0)
        else:
            if told:
                log.warning("training goes on after a pause of %.0f s", time.monotonic() - begin)
            return result
