"""The list of undecodable samples: a file that a crash may have torn, and that several ranks append to."""

from __future__ import annotations

import fcntl
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastfgssl.data import quarantine as quarantine_module
from fastfgssl.data.quarantine import Quarantine
from fastfgssl.runtime.errors import UserError

WHOLE = "sample,id,reason\n17,a/b.png,truncated\n"


@pytest.mark.parametrize("torn", ["3", '"3', "3,a", '3,"a, b', "\0\0\0", "3,\0", "x,y,z\n", "3\n"])
def test_a_torn_line_names_no_sample(tmp_path, torn):
    file = tmp_path / "quarantine.csv"
    file.write_text(WHOLE + torn)
    quarantine = Quarantine(100, file)
    assert quarantine.samples == {17}
    # nor does it swallow, or change, the line after it
    quarantine.add(21, "a, b\nc.png", "a\nreason")
    quarantine.add(22, "d.png", "reason")
    assert Quarantine(100, file).samples == {17, 21, 22}


def test_ranks_share_the_file(tmp_path):
    first, second = (Quarantine(4, tmp_path / "quarantine.csv") for _ in range(2))
    first.add(1, "b", "broken")
    second.add(2, "c", "broken")
    assert second.substitute(np.array([0, 1, 2, 3])).tolist() == [0, 3, 3, 3]
    assert (tmp_path / "quarantine.csv").read_text() == "sample,id,reason\n1,b,broken\n2,c,broken\n"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        Quarantine(4, tmp_path)


def test_ranks_that_find_the_same_at_the_same_time_list_it_once(tmp_path):
    file = tmp_path / "quarantine.csv"
    ranks = [Quarantine(100, file) for _ in range(4)]

    def find(quarantine: Quarantine) -> None:
        for sample in range(30):
            quarantine.add(sample, f"{sample}.png", "broken")

    with ThreadPoolExecutor(len(ranks)) as pool:
        list(pool.map(find, ranks))
    assert file.read_text().splitlines() == [
        "sample,id,reason",
        *(f"{sample},{sample}.png,broken" for sample in range(30)),
    ]


def test_a_file_that_another_locks_for_long_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(quarantine_module, "_LOCK_SECONDS", 0.05)
    file = tmp_path / "quarantine.csv"
    file.write_text(WHOLE)
    with file.open() as hung:
        fcntl.flock(hung, fcntl.LOCK_EX)
        Quarantine(100, file).add(21, "b.png", "broken")
    assert Quarantine(100, file).samples == {17, 21}


def test_a_sample_is_listed_before_it_is_logged_and_whatever_the_log_does(tmp_path, monkeypatch):
    file, told = tmp_path / "quarantine.csv", []

    def fails(record) -> None:
        told.append(file.read_text(encoding="utf-8"))
        raise UnicodeEncodeError("ascii", record.getMessage(), 0, 1, "as a handler of the user's may")

    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", fails)
    monkeypatch.setattr(quarantine_module.log, "handlers", [handler])
    Quarantine(100, file).add(21, "лезия\udcff.png", "broken")
    assert told == ["sample,id,reason\n21,лезия\\udcff.png,broken\n"]
    assert Quarantine(100, file).samples == {21}


def test_many_are_told_of_by_their_number(caplog):
    quarantine = Quarantine(1000)
    for sample in range(900):
        quarantine.add(sample, f"{sample}.png", "broken")
    assert sum("is left out: broken" in message for message in caplog.messages) == 20
    assert [message.split()[0] for message in caplog.messages[20:]] == ["32", "64", "128", "256", "512"]
