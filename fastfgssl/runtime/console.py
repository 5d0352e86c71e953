"""What commands do around their work: arguments, messages, progress, exit codes. The library itself prints nothing.

Bad input becomes one line and exit code 2, Ctrl-C exits quietly with 130. Nobody has to listen: where the reader of the
output is gone, as after `| head`, the work goes on.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NoReturn

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID
from rich.table import Table
from rich.text import Text

from fastfgssl.runtime.environment import rank_environment
from fastfgssl.runtime.errors import RankError, UserError

_WIDE = 200  # columns of an output that is a file and does not wrap
_SECONDS_BETWEEN_LINES = 10.0  # of progress, where the output is no terminal


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every command reports bad input: in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and exits with its code (None counts as 0).

    A `UserError` is printed to stderr as `error: <its text>` and exits with 2; every other exception is a defect of the
    program and keeps its traceback. Of several ranks the first of each machine prints it, which has files and a log of
    its own, and every rank prints a `RankError`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name from outside that the terminal cannot show must not end the work
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main() or 0
    except UserError as error:
        _print_error(error)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception:
        traceback.print_exc()
        code = 1
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exits; at once if this rank is still among others, whom the end of Python's interpreter could wait for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        os._exit(code)
    if code == 0:
        _forget_a_closed_pipe()
    sys.exit(code)


def _forget_a_closed_pipe() -> None:
    """Lets Python flush what it still holds of stdout into nothing, if its reader is gone."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _drop_output()


def _drop_output() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _print_error(error: UserError) -> None:
    try:
        rank, _, local_rank, _ = rank_environment()
    except UserError:  # most likely this very error: a process that cannot tell its rank speaks for itself
        rank = local_rank = 0
    if local_rank == 0 or isinstance(error, RankError):
        where = f"rank {rank}: " if rank > 0 else ""
        print(f"error: {where}{error}", file=sys.stderr)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would end the program here."""
        self.quiet = True
        _drop_output()


def make_console(*, stderr: bool = False) -> Console:
    """A console that does not wrap in a file, takes no text for markup, and outlives the reader of its output."""
    console = _Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def print_table(
    console: Console, rows: Iterable[Sequence[str]], *, title: str = "", columns: Sequence[str] | None = None
) -> None:
    """Prints rows of text, which is shown as it is; columns: their names, for a table with lines."""
    if columns is None:
        table = Table.grid(padding=(0, 2))
        if title:
            console.print(Text(f"\n{title}", style="bold"))
    else:
        table = Table(title=Text(title) if title else None)
        for index, name in enumerate(columns):
            table.add_column(Text(name), justify="right" if index else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


class _LogHandler(logging.Handler):
    """Prints log records above a live line, unwrapped."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._console.print(self.format(record), soft_wrap=True)
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


class ProgressLine:
    """Progress of countable work: a live line on a terminal, plain lines now and then elsewhere.

    columns: of the live line, in rich's terms; quiet: shows nothing.
    """

    def __init__(self, console: Console, *columns: ProgressColumn, quiet: bool = False, transient: bool = True) -> None:
        self._console, self._quiet = console, quiet
        self.is_live = console.is_terminal and not quiet
        self._bar = Progress(*columns, console=console, transient=transient, disable=not self.is_live)
        self._task: TaskID = self._bar.add_task("", total=None, text="")
        self._shown = -_SECONDS_BETWEEN_LINES

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, text: str | None = None) -> None:
        """Moves the live line; `text` stands beside it."""
        fields = {} if text is None else {"text": text}
        self._bar.update(self._task, completed=done, total=total, **fields)

    def line(self, text: str, *, always: bool = False) -> None:
        """Prints a line where there is no live one: if the last was long enough ago, or `always`."""
        now = time.monotonic()
        if self._quiet or self.is_live or (not always and now < self._shown + _SECONDS_BETWEEN_LINES):
            return
        self._shown = now
        self._console.print(text, soft_wrap=True)

    @property
    def speed(self) -> float | None:
        """Of the work, a second; None before it can be told."""
        return self._bar.tasks[0].speed
