"""What a node does, without a cluster: it refuses work that it would do otherwise, and does tasks as they come."""

from __future__ import annotations

import pickle
import re
import sys
from types import ModuleType

import pytest

from fastfgssl.archive.cluster.station import Station, versions_here
from helpers.tasks import Act


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fastfgssl": "0.0.1"}, r"^has fastfgssl \S+, this machine 0\.0\.1: install the same there"),
        ({"pillow": None}, r"^has pillow \S+, this machine not at all"),
        ({"a codec": "1.0"}, r"^has a codec not at all, this machine 1\.0"),
    ],
)
def test_other_versions_are_refused_before_the_work_is_opened(changed, said):
    station = Station(versions_here() | changed, b"what only these versions read", 1)
    assert re.search(said, station.problem())


def test_more_tasks_than_workers_are_all_done(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # of which it takes away the file
    station = Station(versions_here(), pickle.dumps((Act(), 60.0, str)), 1)
    try:
        assert station.problem() == ""
        told: dict[int, object] = {}
        tasks = [(number, (f"{number}",)) for number in range(4)]
        while len(told) < 4:
            turn = station.turn(tasks)
            assert turn.error is None
            told |= dict(turn.events)
            tasks = []
        assert told == {number: [f"{number}"] for number in range(4)}

        turn = station.turn([(7, ("disk full",))])
        while turn == ([], None):
            turn = station.turn([])
        assert isinstance(turn.error, OSError)
    finally:
        station._pool.close()
