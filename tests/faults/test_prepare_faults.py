"""No archive is half there, whatever ends the making of it; and the same command goes on to the same bytes."""

from __future__ import annotations

import pytest

from helpers.faults import Fault


@pytest.mark.parametrize(
    ("action", "from_then_on", "step"), [("kill", False, 19), ("EIO", True, 41), ("ENOSPC", False, 47)]
)
def test_an_archive_is_whole_or_not_there(preparing, action, from_then_on, step):
    n = 1 + len(action)
    while True:
        preparing.clear()
        ended = preparing.run(Fault(preparing.folder, n, action, from_then_on))
        if not ended.failed:
            break
        preparing.check_left(ended)
        preparing.check_whole(preparing.run())
        n += step
    assert n > 3 * step
