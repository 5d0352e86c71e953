"""Work is spread over processes, any of which may be killed, crash or hang: that costs one file, and none stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastfgssl.archive.building.worker import NO_ITEM, Death, Watch, start_worker
from fastfgssl.archive.building.workers import run_tasks
from fastfgssl.runtime.errors import UserError
from helpers.command import Command
from helpers.images import encode, gradient, write_files
from helpers.paths import TESTS, TOOLS
from helpers.tasks import Act, Dead
from helpers.waiting import wait_until

TOOL = TOOLS / "prepare.py"


def living(session: int) -> list[int]:
    """Processes of a session that have not ended (a zombie has)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # gone meanwhile
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_interrupt_leaves_no_archive_and_no_processes(tmp_path):
    source = write_files(tmp_path / "source", {"0.png": encode(gradient(300, 300), "PNG")})
    for i in range(1, 3000):
        (source / f"{i}.png").symlink_to(source / "0.png")
    run = Command(TOOL, source, "--out", tmp_path / "archive", "--workers", 2)
    wait_until(lambda: run.poll() is not None or list(tmp_path.glob("archive.partial/parts/*/rows.arrow")))
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, errors = run.communicate(timeout=120)
    assert (run.returncode, errors) == (130, "interrupted\n")
    assert not (tmp_path / "archive").exists()
    wait_until(lambda: not living(run.pid))


def test_an_interrupt_is_heard_while_a_worker_starts(monkeypatch):
    """For which its parent waits as long as the process that workers are forked from imports what they need."""
    monkeypatch.setattr(
        "multiprocessing.context.ForkServerProcess.start", lambda self: signal.raise_signal(signal.SIGINT)
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start_worker(Act())
    finally:
        signal.signal(signal.SIGINT, before)


def test_workers_end_when_their_parent_is_killed():
    program = """
from helpers.tasks import Sleep, give_up
from fastfgssl.archive.building.workers import run_tasks
if __name__ == "__main__":
    for _ in run_tasks(Sleep(), [0.1, *[1000] * 99], workers=2, after_death=give_up):
        print("working", flush=True)
"""
    environment = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{TESTS}"}
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert run.stdout.readline() == "working\n"
    assert len(living(run.pid)) >= 3
    run.kill()
    _, errors = run.communicate()
    assert errors == ""
    wait_until(lambda: not living(run.pid))


def without_the_guilty(deaths: list[Death]):
    def after(death: Death) -> tuple:
        deaths.append(death)
        return tuple(item for number, item in enumerate(death.task) if number != death.item)

    return after


def test_a_worker_that_dies_or_hangs_costs_one_item():
    deaths: list[Death] = []
    tasks = [("a", signal.SIGKILL, "b"), ("c",), ("d", "hang"), (signal.SIGSEGV, "e"), ("f",)]
    results = list(run_tasks(Act(), tasks, 2, max_seconds=1, after_death=without_the_guilty(deaths)))
    assert sorted(results) == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    assert {(death.reason, death.item, death.stage, death.timed_out) for death in deaths} == {
        ("killed its worker (SIGKILL)", 1, 7, False),
        ("took more than 1 s", 1, 7, True),
        ("killed its worker (SIGSEGV)", 0, 7, False),
    }


def test_what_a_worker_raises_is_told():
    deaths: list[Death] = []
    with pytest.raises(OSError, match="No space left on device"):
        list(run_tasks(Act(), [("a",), ("disk full",)], 1, after_death=without_the_guilty(deaths)))
    with pytest.raises(RuntimeError, match=r"(?s)^a worker failed:.*ValueError: factorial"):
        list(run_tasks(Act(), [("defect",)], 1, after_death=without_the_guilty(deaths)))
    with pytest.raises(UserError, match="a worker has too little memory to work at all: give it more --max-memory"):
        list(run_tasks(Act(), [("memory full",)], 1, after_death=without_the_guilty(deaths)))
    assert deaths == []


def test_workers_that_never_begin_end_the_run():
    with pytest.raises(UserError, match=r"^workers end before they begin \(killed its worker \(exit code 3\)\)"):
        list(run_tasks(Dead(), ["a"], 2, after_death=lambda death: death.task))


def test_tasks_are_taken_as_they_are_needed():
    taken = 0

    def tasks():
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield ("a",)

    for done, _ in enumerate(run_tasks(Act(), tasks(), 2, after_death=without_the_guilty([])), start=1):
        assert taken <= done + 3


def test_the_watch_tells_the_item_and_for_how_long():
    watch = Watch([0.0] * 3)
    watch.begin(5, stage=1)
    item, stage, seconds = watch.read()
    assert (item, stage) == (5, 1)
    assert 0 <= seconds < 1
    watch.rest()
    assert watch.read()[0] == NO_ITEM


def test_workers_do_not_import_the_script_that_is_run(tmp_path):
    """Which may take long, and would begin anew without a guard."""
    write_files(tmp_path / "source", {"0.png": encode(gradient(30, 30), "PNG")})
    (tmp_path / "script.py").write_text(
        "from fastfgssl.archive.prepare import PrepareOptions, prepare\n"
        "print(prepare(PrepareOptions(sources=['source'], out='archive', workers=1)).samples)\n"
    )
    run = Command(tmp_path / "script.py", cwd=tmp_path)
    assert (*run.communicate(timeout=240), run.returncode) == ("1\n", "", 0)
