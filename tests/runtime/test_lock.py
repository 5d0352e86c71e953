"""A folder that one job at a time writes into: refused, or recognised as dead; never both."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from fastfgssl.runtime import lock as module
from fastfgssl.runtime.errors import UserError
from fastfgssl.runtime.lock import LOCK, held_folder


@pytest.fixture
def record(tmp_path):
    """Writes who holds the folder, as a job that was killed has left it: this process, but for what is given."""

    def write(**other) -> None:
        with held_folder(tmp_path):
            me = json.loads((tmp_path / LOCK).read_text())
        (tmp_path / LOCK).write_text(json.dumps(me | {"token": "another"} | other))

    return write


@pytest.fixture
def no_locks(monkeypatch):
    """What a file system without locks answers."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.fixture(autouse=True)
def short_silence(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.4)
    monkeypatch.setattr(module, "BEAT", 0.05)


def require_refused(folder, pid=None, host=None) -> None:
    who = f"process {pid or os.getpid()} on {host or socket.gethostname()}, since 20"
    with pytest.raises(UserError, match=f"is being written by another job.*{re.escape(who)}"), held_folder(folder):
        pass


def test_a_folder_has_one_holder_at_a_time_and_is_left_as_it_was(tmp_path):
    with held_folder(tmp_path / "run"):
        require_refused(tmp_path / "run")
    with held_folder(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_so_it_is_without_locks_which_is_said(tmp_path, no_locks, caplog):
    caplog.set_level("INFO")
    with held_folder(tmp_path):
        require_refused(tmp_path)
    assert f"{tmp_path} is on a file system without locks: its file .lock alone keeps other jobs out" in caplog.messages
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_has_ended_holds_nothing(tmp_path, record, caplog):
    caplog.set_level("INFO")
    ended = subprocess.Popen(["true"])
    ended.wait()
    record(pid=ended.pid)
    with held_folder(tmp_path):
        pass
    assert any("which is gone" in message for message in caplog.messages)
    record(begun="1")  # its number is this process's now
    with held_folder(tmp_path):
        pass


def test_nor_does_one_that_nobody_has_buried_yet(tmp_path, record):
    dead = subprocess.Popen(["sleep", "100"])
    record(pid=dead.pid, begun=module._begun(dead.pid))
    require_refused(tmp_path, pid=dead.pid)
    dead.kill()
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    with held_folder(tmp_path):
        pass
    dead.wait()


def test_nor_one_of_before_the_machine_restarted(tmp_path, record):
    record(boot="an earlier one")
    with held_folder(tmp_path):
        pass


def test_a_machine_of_the_same_name_is_not_taken_for_one_that_restarted(tmp_path, record, no_locks):
    record(boot="another")
    with beating(tmp_path / LOCK):
        require_refused(tmp_path)


def test_a_child_of_a_dead_process_does_not_hold_its_folder(tmp_path, record):
    ended = subprocess.Popen(["true"])
    ended.wait()
    record(pid=ended.pid)
    left = subprocess.Popen(["flock", str(tmp_path / LOCK), "sleep", "100"], start_new_session=True)
    try:
        while module._flock(descriptor := os.open(tmp_path / LOCK, os.O_RDWR)) is not False:
            os.close(descriptor)
            time.sleep(0.02)
        with held_folder(tmp_path):
            require_refused(tmp_path)
    finally:
        os.killpg(left.pid, signal.SIGKILL)
        left.wait()


class beating:
    """Renews a file's time, as its holder on another machine does."""

    def __init__(self, file) -> None:
        self._file, self._stop = file, threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def _beat(self) -> None:
        while not self._stop.wait(0.05):
            with suppress(FileNotFoundError):
                os.utime(self._file)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("other", [{"host": "node-7"}, {"processes": "pid:[1]"}])
def test_another_machine_or_container_holds_a_folder_while_it_shows_signs_of_life(tmp_path, record, other):
    record(**other)
    with beating(tmp_path / LOCK):
        require_refused(tmp_path, host=other.get("host"))
    start = time.monotonic()
    with held_folder(tmp_path):
        assert time.monotonic() - start >= 0.4


def test_who_was_taken_for_dead_finds_that(tmp_path, record):
    with held_folder(tmp_path) as first:
        first.check()
        taken_over = json.loads((tmp_path / LOCK).read_text()) | {"host": "node-7", "token": "another"}
        (tmp_path / LOCK).write_text(json.dumps(taken_over))
        with pytest.raises(UserError, match=r"was taken over \(process \d+ on node-7, since .*writes no more"):
            first.check()
    assert (tmp_path / LOCK).exists()  # it is the other's


@pytest.mark.parametrize("left", ["nothing", "dead", "cut", "claimed"])
def test_of_many_that_come_at_once_one_has_it_without_locks(tmp_path, record, no_locks, monkeypatch, left):
    monkeypatch.setattr(module, "_CLAIM_SECONDS", 2.0)  # longer than 12 threads take for it on a busy machine
    if left == "dead":
        record(host="node-7")
    elif left == "cut":
        (tmp_path / LOCK).write_text('{"host": "no')
    elif left == "claimed":
        (tmp_path / ".lock.claim").touch()
    start, holding, refused = threading.Barrier(12), [], []

    def come() -> None:
        start.wait()
        try:
            holding.append(held.enter_context(held_folder(tmp_path)))
        except UserError as error:
            refused.append(str(error))

    with ExitStack() as held:
        threads = [threading.Thread(target=come) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(holding), len(refused)) == (1, 11)
        holding[0].check()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^cannot write /proc/run/.lock: No such file or directory$"):
        with held_folder(module.Path("/proc/run")):
            pass
