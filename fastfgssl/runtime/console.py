"""What commands do around their work: arguments, messages, progress, exit codes. The library itself prints nothing.

Bad input becomes one line and exit code 2, a lost rank 75, a run whose disk is away 79; Ctrl-C exits quietly with 130,
SIGTERM with 143. Output can neither end the work nor lose its result: nobody has to listen, as after `| head`, and a
name is no markup, whatever it looks like, and can be shown on every terminal.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, TaskID
from rich.table import Table
from rich.text import Text

from fastfgssl.runtime.environment import rank_environment
from fastfgssl.runtime.errors import RankError, UserError
from fastfgssl.runtime.signals import end_with_launcher, exit_on_sigterm

_WIDE = 200  # columns of an output that is no terminal
_SECONDS_BETWEEN_LINES = 10.0  # of progress, where the output is no terminal


class Parser(argparse.ArgumentParser):
    """Takes words and options in any order, and reports a wrong command line as bad input is: in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | options)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # values too that only begin so, as --window -600/1500

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self.parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and exits with its code (None counts as 0).

    A `UserError` is printed to stderr as `error: <its text>` and exits with its code; every other exception is a defect
    of the program and keeps its traceback. Of several ranks the first of each machine prints it, which has files and a
    log of its own, and every rank prints a `RankError`.
    """
    sys.stdout, sys.stderr = _Outlet(sys.stdout), _Outlet(sys.stderr)
    # a rank that is gone is told in our line; torch, not imported yet, would put stack traces before it
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with exit_on_sigterm():
            end_with_launcher()
            code = main() or 0
        if code > 128:
            _tell_launcher(f"stopped by {signal.Signals(code - 128).name} and saved; the same command goes on")
    except UserError as error:
        _print_error(error)
        _tell_launcher(f"error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except SystemExit as ended:  # --help, SIGTERM
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if code == 128 + signal.SIGTERM:
            print("terminated", file=sys.stderr)
    except Exception:
        traceback.print_exc()
        _tell_launcher(traceback.format_exc())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        os._exit(code)  # this rank is still among others, whom the end of Python's interpreter could wait for
    sys.exit(code)


def _print_error(error: UserError) -> None:
    try:
        rank, _, local_rank, _ = rank_environment()
    except UserError:  # most likely this very error: a process that cannot tell its rank speaks for itself
        rank = local_rank = 0
    if local_rank == 0 or isinstance(error, RankError):
        where = f"rank {rank}: " if rank > 0 else ""
        print(f"error: {where}{_visible(str(error))}", file=sys.stderr)


def _tell_launcher(text: str) -> None:
    """Leaves `text` where torchrun looks for it: it ends its own traceback with what its first rank to fail left."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"timestamp": str(int(time.time())), "py_callstack": text}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": details}}))


class _Outlet:
    """stdout or stderr, which takes whatever is written: what it cannot encode escaped, what nobody reads into nothing.

    None, which Python has for a stream that was closed before it started, is one that nobody reads.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None else Path(os.devnull).open("w")  # noqa: SIM115 - for good
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _do(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (OSError, ValueError) as error:
            # what Python still holds of it, and what is written from now on, goes nowhere; children's output too
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            if self is sys.stdout and isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                print(f"the output cannot be written, so it ends here: {error.strerror}", file=sys.stderr)


def make_console(*, stderr: bool = False) -> Console:
    """A console that takes no text for markup; where it is no terminal, of a fixed width.

    What variables such as FORCE_COLOR say makes a file no terminal, and one that cannot move its cursor is none either.
    """
    is_terminal = _is_terminal(sys.stderr if stderr else sys.stdout)
    console = Console(
        stderr=stderr,
        markup=False,
        highlight=False,
        emoji=False,
        force_terminal=is_terminal,
        force_interactive=is_terminal,
    )
    if not console.is_terminal:
        console.width = _WIDE
    return console


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    except ValueError:  # closed
        return False


def print_line(console: Console, text: str) -> None:
    """Prints text as it is, without a break where the terminal ends: it may be there to be pasted."""
    console.print(Text(_visible(text)), soft_wrap=True)


def print_table(
    console: Console, rows: Iterable[Sequence[str]], *, title: str = "", columns: Sequence[str] | None = None
) -> None:
    """Prints rows of text, all of it and as it is; columns: their names, for a table with lines."""
    lines = [[_cell(text) for text in row] for row in rows]
    if columns is None:
        table = Table.grid(padding=(0, 2))
        if title:
            console.print(Text(f"\n{_visible(title)}", style="bold"), soft_wrap=True)
    else:
        table = Table(title=Text(_visible(title)) if title else None)
        for name, cells in zip(columns, zip(*lines, strict=True), strict=True):
            table.add_column(_cell(name), justify="right" if all(map(_is_number, cells)) else "left")
    for line in lines:
        table.add_row(*line)
    if not console.is_terminal:  # lines of a file may be longer
        console.width = max(_WIDE, Measurement.get(console, console.options.update(max_width=10**5), table).maximum)
    console.print(table)


def _is_number(cell: Text) -> bool:
    return re.fullmatch(r"[-+]?[\d.,]+(e[-+]\d+)?%?|nan|-?inf", cell.plain) is not None


def _cell(text: str) -> Text:
    return Text(_visible(text).replace("\n", r"\n"), overflow="fold")


def _visible(text: str) -> str:
    """`text`, in which what would move a terminal's cursor or change its colours is escaped."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Cs") and char != "\n" else char
        for char in text
    )


class _LogHandler(logging.Handler):
    """Prints log records above a live line, unwrapped."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print_line(self._console, self.format(record))
        except Exception:  # what is shown is not worth the work
            self.handleError(record)


def log_to(console: Console) -> None:
    """Shows what the library logs: all of the first rank, warnings of the others with their rank."""
    rank = rank_environment().rank
    handler = _LogHandler(console)
    handler.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"rank {rank}: %(message)s"))
    logger = logging.getLogger("fastfgssl")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False


class _Bar(Progress):
    """With the text of its task on a line of its own, cut where the terminal ends."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if text := task.fields["text"]:
                yield Text(_visible(text), no_wrap=True, overflow="ellipsis")


class ProgressLine:
    """Progress of countable work: a live line on a terminal, and its text below; plain lines now and then elsewhere.

    columns: of the live line, in rich's terms, for 80 columns of a terminal; quiet: shows nothing.
    """

    def __init__(self, console: Console, *columns: ProgressColumn, quiet: bool = False, transient: bool = True) -> None:
        self._console, self._quiet = console, quiet
        self.is_live = console.is_terminal and not quiet
        self._bar = _Bar(*columns, console=console, transient=transient, disable=not self.is_live)
        self._task: TaskID = self._bar.add_task("", total=None, text="")
        self._shown = -_SECONDS_BETWEEN_LINES

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, text: str | None = None) -> None:
        """Moves the live line; `text` stands below it."""
        self._bar.update(self._task, completed=done, total=total)
        if text is not None:
            self._bar.update(self._task, text=text)

    def line(self, text: str, *, always: bool = False) -> None:
        """Prints a line where there is no live one: if the last was long enough ago, or `always`."""
        now = time.monotonic()
        if self._quiet or self.is_live or (not always and now < self._shown + _SECONDS_BETWEEN_LINES):
            return
        self._shown = now
        print_line(self._console, text)

    @property
    def speed(self) -> float | None:
        """Of the work, a second; None before it can be told."""
        return self._bar.tasks[0].speed
