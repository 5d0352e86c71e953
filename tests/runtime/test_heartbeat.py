"""Who is named when a rank is lost: also where that rank, or the launcher, keeps the store in which ranks look."""

from __future__ import annotations

import os
import re
import signal
import socket
import time

import pytest

from fastfgssl.runtime import distributed
from fastfgssl.runtime.distributed import start_world
from fastfgssl.runtime.errors import LostRank
from helpers.command import Command
from helpers.further import further
from helpers.paths import ROOT

SCRIPT = ROOT / "tests" / "helpers" / "lost_rank.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(number: int, lost: int, port: int, size: int = 3, **more: str) -> list[Command]:
    ranks = []
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
        ranks.append(Command(SCRIPT, number, lost, environment=environment | more))
    return ranks


def last_words(ranks: list[Command], lost: int) -> tuple[list[str], float]:
    """Of the ranks that are left, all of which end with 75, and after how many seconds."""
    others = [rank for number, rank in enumerate(ranks) if number != lost]
    printed = [rank.communicate(timeout=120)[1] for rank in others]
    ended = time.time()
    ranks[lost].kill()
    begun = float(ranks[lost].communicate()[0])
    assert [rank.returncode for rank in others] == [75, 75], printed
    assert not any("Traceback" in text for text in printed)
    return [text.splitlines()[-1] for text in printed], ended - begun


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            signal.SIGSTOP,
            r"waited \d+ s, making step at step 3, for another rank: .* does not answer: it is stopped, or",
        ),
        (signal.SIGKILL, r"another rank is gone or did not answer while adding up: .*; .* is gone$"),
    ],
)
def test_a_rank_that_keeps_the_store_is_named(number, said):
    port = free_port()
    words, seconds = last_words(start_ranks(number, 0, port), lost=0)
    for rank, line in enumerate(words, start=1):
        assert re.search(rf"^error: rank {rank}: {said}", line), words
        assert f"rank 0, which keeps the store at 127.0.0.1:{port}, " in line
    assert seconds < 20  # a busy machine


@pytest.mark.parametrize("number", [signal.SIGSTOP, *further(signal.SIGKILL)])
def test_a_rank_is_named_by_all_others(number):
    words, seconds = last_words(start_ranks(number, 2, free_port()), lost=2)
    assert all("rank 2 stopped, last heard making step 3 (" in line for line in words), words
    assert seconds < 30


def test_ranks_that_do_not_meet_are_one_line(monkeypatch):
    port = free_port()
    names = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    for name, value in {**names, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "FIRST_TIMEOUT", 1.0)
    monkeypatch.setattr(distributed, "_meeting_place", None)
    with pytest.raises(LostRank, match=rf"^cannot meet the other ranks at 127.0.0.1:{port}: .*timed out") as caught:
        start_world("cpu").__enter__()
    assert "\n" not in str(caught.value)
