"""What every tool does around its work: bad input becomes one line and exit code 2, Ctrl-C exits quietly with 130."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from fastfgssl.runtime.environment import rank_environment
from fastfgssl.runtime.errors import RankError, UserError


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every tool reports bad input: in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and exits with its code (None counts as 0).

    A `UserError` is printed to stderr as `error: <its text>` and exits with 2; every other exception is a defect of the
    program and keeps its traceback. Of several ranks the first of each machine prints it, which has files and a log of
    its own, and every rank prints a `RankError`.
    """
    try:
        code = main() or 0
    except UserError as error:
        _print_error(error)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _print_error(error: UserError) -> None:
    try:
        rank, _, local_rank, _ = rank_environment()
    except UserError:  # most likely this very error: a process that cannot tell its rank speaks for itself
        rank = local_rank = 0
    if local_rank == 0 or isinstance(error, RankError):
        where = f"rank {rank}: " if rank > 0 else ""
        print(f"error: {where}{error}", file=sys.stderr)
