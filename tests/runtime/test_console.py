"""What is shown: names as they are, on every terminal, to whoever still reads; and signals that end a command."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from fastfgssl.runtime.console import ProgressLine, make_console, print_line, print_table
from fastfgssl.runtime.distributed import World
from fastfgssl.training import display
from fastfgssl.training.hooks import Moment

NAMES = ["melanoma [/in situ]", "nevus [benign]", ":warning: [red]", "naevus naïf 痣", "a\x1b[31mb\udce9\n"]
SHOWN = [*NAMES[:-1], r"a\x1b[31mb\udce9\n"]


def run(program: str, **options) -> subprocess.CompletedProcess:
    head = "from fastfgssl.runtime.console import *\nimport os, sys, time\n"
    return subprocess.run([sys.executable, "-c", head + program], capture_output=True, text=True, **options)


@pytest.mark.parametrize("columns", [None, ["name", "count"]])
def test_names_are_shown_as_they_are(capsys, columns):
    print_table(make_console(), [(name, "1") for name in NAMES], title=NAMES[0], columns=columns)
    out = capsys.readouterr().out
    assert all(name in out for name in SHOWN)
    print_line(make_console(), NAMES[0])
    assert capsys.readouterr().out == f"{NAMES[0]}\n"


def test_all_columns_of_a_wide_table_are_in_a_file(capsys):
    names = [f"class number {index}" for index in range(60)]
    print_table(make_console(), [("row", *"1" * 60)], columns=["", *names])
    out = capsys.readouterr().out
    assert all(name in out for name in names)


def test_a_long_name_is_whole_on_a_narrow_terminal():
    console = Console(file=io.StringIO(), width=30, force_terminal=True, color_system=None)
    print_table(console, [("x" * 70, "1.5"), ("y", "22")], columns=["name", "value"])
    shown = console.file.getvalue()
    assert shown.count("x") == 70
    assert "│  1.5 │" not in shown  # numbers stand at the right of their column
    assert "   22 │" in shown


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_what_a_terminal_cannot_encode_is_escaped(variables):
    program = """
def main():
    print_table(make_console(), [("na\\u00efve \\u75e3", "1")], columns=["name", "count"])
    raise UserError("cannot read \\u75e3")
run_tool(main)"""
    done = run(program, env={**os.environ, "PYTHONUTF8": "0", **variables})
    assert done.returncode == 2, done.stderr
    assert "\\xefve \\u75e3" in done.stdout or "naïve 痣" in done.stdout
    assert done.stderr in ("error: cannot read \\u75e3\n", "error: cannot read 痣\n")


@pytest.mark.parametrize("closed", ["stdout", "stderr", "both", "never opened"])
def test_the_work_goes_on_without_a_reader(tmp_path, closed):
    program = f"""
def main():
    console, beside = make_console(), make_console(stderr=True)
    for line in range(3000):
        print_line(console, f"line {{line}} of many that fill a pipe's buffer and more")
        print_line(beside, "said")
        print("plainly")
    print_table(console, [("a", "b")])
    open({str(tmp_path / "done")!r}, "w").close()
run_tool(main)"""
    read, write = os.pipe()
    os.close(read)
    streams = {name: write for name in ("stdout", "stderr") if closed in (name, "both")}
    started = {"preexec_fn": lambda: os.close(1)} if closed == "never opened" else {}
    head = "from fastfgssl.runtime.console import *\n"
    errors = streams.get("stderr", subprocess.PIPE)
    out = streams.get("stdout", subprocess.DEVNULL)
    done = subprocess.run([sys.executable, "-c", head + program], stdout=out, stderr=errors, text=True, **started)
    os.close(write)
    assert done.returncode == 0
    assert (tmp_path / "done").exists()
    assert not (done.stderr or "").replace("said\n", "")


def test_an_output_on_a_full_disk_is_told_and_ends_nothing(tmp_path):
    program = f"""
def main():
    for _ in range(3000):
        print_line(make_console(), "line")
    open({str(tmp_path / "done")!r}, "w").close()
run_tool(main)"""
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-c", "from fastfgssl.runtime.console import *\n" + program]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stderr == "the output cannot be written, so it ends here: No space left on device\n"
    assert (tmp_path / "done").exists()


def test_words_and_options_stand_in_any_order():
    program = """
def main():
    parser = Parser(description="")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--window")
    arguments = parser.parse_args(["a=1", "--window", "-600/1500", "b=2"])
    print(arguments.words, arguments.window)
run_tool(main)"""
    assert run(program).stdout == "['a=1', 'b=2'] -600/1500\n"


def test_lines_of_progress_come_now_and_then(capsys):
    with ProgressLine(make_console()) as line:
        for done in range(5):
            line.update(done, 5, "[/x]")
            line.line(f"{done} of 5 [/x]")
        line.line("last", always=True)
    assert capsys.readouterr().out == "0 of 5 [/x]\nlast\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_and_its_children(tmp_path, number):
    """As torchrun has to be ended, which leaves its ranks behind if it is killed."""
    program = f"""
from fastfgssl.runtime.signals import run_child
from pathlib import Path
import tempfile
child = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(open('ended', 'w').close()));" \
    "open('started', 'w').close(); time.sleep(60)"
def main():
    with tempfile.TemporaryDirectory(dir="."):
        run_child([sys.executable, "-c", child])
os.chdir({str(tmp_path)!r})
run_tool(main)"""
    head = "from fastfgssl.runtime.console import *\nimport os, sys\n"
    process = subprocess.Popen([sys.executable, "-c", head + program], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == {15: (143, "terminated\n"), 2: (130, "interrupted\n")}[number]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ended", "started"]  # and no temporary folder


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CLICOLOR_FORCE"])
def test_no_variable_makes_a_file_a_terminal(monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("COLUMNS", "40")
    console = make_console()
    with ProgressLine(console) as line:
        assert not line.is_live
        line.line("x" * 150, always=True)
    print_table(console, [("a", "1" * 150)], title="of a file", columns=["name", "count"])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    print_table(console, [("a", "2" * 300)])
    assert "2" * 300 in capsys.readouterr().out
    assert "x" * 150 in shown
    assert "1" * 150 in shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch, term):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", term)
    with ProgressLine(make_console()) as line:
        assert not line.is_live
        line.line("1 of 5", always=True)
        assert sys.stdout.getvalue() == "1 of 5\n"


def test_a_run_at_80_columns_shows_how_far_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    weights = dict.fromkeys(["loss_0", "loss_1", "loss_2", "loss_all"], 1.0)
    hook = display.Terminal(make_console(), "fgssl.progressive-seed-[0]")
    hook.begin(
        SimpleNamespace(
            world=World.alone(torch.device("cpu")), start=0, steps=100000, objective=SimpleNamespace(weights=weights)
        )
    )
    logs = {"loss": 1.5, "images_per_second": 1234.5, "data_wait": 0.25, "lr": 1e-4, "epoch": 1.0, **weights}
    for step in (12345, 12346):
        hook(Moment(step, logs, None))
        time.sleep(0.15)
    hook.end()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", sys.stdout.getvalue())
    *_, bar, text = [line for line in shown.replace("\r", "\n").splitlines() if line.strip()]
    assert re.fullmatch(r"fgssl.progressive-seed-. \S* 12346/100000 0:00:\d\d eta \S+", " ".join(bar.split()))
    assert text.startswith("loss 1.5 (0:1 1:1 2:1 all:1)  1234 images/s")
    assert max(len(line) for line in (bar, text)) <= 80
