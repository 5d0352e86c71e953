"""The exception that a user can cause: a tool prints it as a single line and exits with its code."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

AWAY = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EREMOTEIO),
        *(errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    }
)
"""What a disk that stumbles, or a file server that is away or starts anew, answers."""
TAKES_NOTHING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""What a disk answers that is full, or was made read-only: it stays so until somebody has seen to it."""
STORAGE_EXIT_CODE = 79
"""Of a run that a disk or a file server has ended, and that goes on when it is back.

Beyond the codes of sysexits.h, and above 75: of several tasks `srun` hands on the highest code, and where one rank
cannot read, the others end with the 75 of a rank that is lost.
"""


class UserError(Exception):
    """Bad input from outside: says what is wrong, where (file, sample, key), and what to do.

    errno: what the system has refused with, where that is it.
    """

    exit_code = 2

    def __init__(self, text: str = "", *, errno: int | None = None) -> None:
        super().__init__(text)
        self.errno = errno


class RankError(UserError):
    """A `UserError` that this rank may have met alone: the others cannot tell of it."""


class LostRank(RankError):
    """Another rank is gone: nothing is wrong with the input, and the same command goes on from the checkpoint."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


@contextmanager
def file_errors(action: str, path: Path) -> Iterator[None]:
    """Turns what the system refuses in the body into a `UserError`: cannot `action` (read, write) `path`, and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {action} {path}: {error.strerror or error}", errno=error.errno) from None


def in_a_line(error: BaseException) -> str:
    """What an exception says, without its line ends; the name of its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def require_one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raises a `UserError` that names the known words and the nearest of them, unless `value` is one of them."""
    words = list(known)
    if value not in words:
        raise UserError(f"{name} = {value!r}: must be one of {', '.join(words)}{nearest(str(value), words)}")


def nearest(word: str, known: Iterable[str], *, shown: Mapping[str, str] | None = None, cutoff: float = 0.6) -> str:
    """`; did you mean ...?` for the known word nearest to `word`; empty if none is near.

    shown: what is shown in place of a word.
    """
    for match in difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff):
        return f"; did you mean {(shown or {}).get(match, match)!r}?"
    return ""
