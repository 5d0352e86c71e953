"""A folder that one job at a time writes into, whatever its file system can do; who holds it is written there.

The file `.lock` in the folder says who: host, process, since when; and its time is renewed every few seconds. The
system's own lock on it (flock) decides where there is one. There is none on NFS mounted without, and on Lustre there
may be one that other machines do not see. So what the file says counts too:

    a process of this machine              alive if it still runs: the same number, begun at the same time
    of this machine before it restarted    dead, if the system's lock is free
    of another machine, or container       alive if the file's time moves within `SILENCE` seconds, which are waited for

A lock that is dead is taken over. Whoever was taken for dead and wakes up finds that by `check`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import is_at

log = logging.getLogger(__name__)

LOCK = ".lock"
BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 20.0
"""Seconds without one, after which a job of another machine is taken for dead."""
_LOOK_EVERY = 0.5  # seconds
_CLAIM = ".lock.claim"  # made first by who takes a lock that the system does not guard
_LONGEST = 4096  # bytes of such a file
_CLAIM_SECONDS = 10.0  # for an act of milliseconds: who made an older one was killed in it


class Holder(NamedTuple):
    """Who holds a folder."""

    host: str
    boot: str
    """Of the machine; another one each time that it starts."""
    processes: str
    """The system's table that `pid` is of: a container has one of its own."""
    pid: int
    begun: str
    """When the process began, in ticks of the system: its number may be another's by now."""
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_alive(self, *, is_free: bool) -> bool | None:
        """None where it cannot be told from here; is_free: whether the system's lock was free."""
        if self.host != socket.gethostname():
            return None
        if self.boot != _boot():
            return False if is_free else None  # else another machine of that name
        if self.processes != _processes():
            return None
        return _begun(self.pid) == self.begun


class FolderLock:
    """A folder that is held."""

    def __init__(self, path: Path, descriptor: int, token: str) -> None:
        self._path, self._descriptor, self._token = path, descriptor, token
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="fastfgssl-lock", daemon=True)
        self._beating.start()

    def check(self) -> None:
        """Raises `UserError` if another job has taken the folder over: this one is not to write there any more."""
        with suppress(OSError):
            holder = _read(self._path)
            if holder is None:
                self._restore()
            elif holder.token != self._token:
                raise UserError(
                    f"{self._path.parent} was taken over ({holder}), as nothing had been heard of this run for"
                    f" {SILENCE:.0f} seconds; it ends here and writes no more"
                )

    def release(self) -> None:
        """Lets others have the folder."""
        self._ended.set()
        self._beating.join()
        with suppress(OSError):
            holder = _read(self._path)
            if holder is not None and holder.token == self._token:
                self._path.unlink()
        os.close(self._descriptor)

    def _restore(self) -> None:
        """Locks anew a folder that was removed and is made again."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        _flock(descriptor)
        self._token = write_holder(descriptor)
        os.dup2(descriptor, self._descriptor, inheritable=False)
        os.close(descriptor)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # a disk that is away: what is written to it will say so
                os.utime(self._descriptor)


@contextmanager
def held_folder(folder: Path) -> Iterator[FolderLock]:
    """Makes `folder` if need be, and holds it during the body, or until the process ends, however it does.

    Raises `UserError` if another job holds it, or if it cannot be written.
    """
    path, is_new = folder / LOCK, not folder.exists()
    with file_errors("write", path):
        folder.mkdir(parents=True, exist_ok=True)
        while (lock := _take(path)) is None:
            pass
    try:
        yield lock
    finally:
        lock.release()
        if is_new:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def _take(path: Path) -> FolderLock | None:
    """None if something has changed meanwhile, so that it is to be tried again."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        token = _taken(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    if token is None:
        os.close(descriptor)
        return None
    return FolderLock(path, descriptor, token)


def _taken(path: Path, descriptor: int) -> str | None:
    """The token of a lock that is this job's now."""
    is_free = _flock(descriptor)
    if not is_at(path, descriptor):  # who held it has removed it
        return None
    holder = read_holder(descriptor)
    if holder is None and is_free is False:  # who has just locked it is about to write
        time.sleep(_LOOK_EVERY)
        if is_at(path, descriptor) and read_holder(descriptor) is None:
            raise UserError(f"{path.parent} is being written by another process: wait for it, or stop it")
        return None
    if holder is not None:
        _require_gone(path, holder, is_free=bool(is_free))
    with nullcontext() if is_free else _claimed(path.with_name(_CLAIM)):
        if not is_at(path, descriptor) or read_holder(descriptor) != holder:
            return None
        if is_free is False:  # a child of the dead process has the system's lock still
            path.unlink()
            return None
        if is_free is None:
            log.info("%s is on a file system without locks: its file %s alone keeps other jobs out", path.parent, LOCK)
        return write_holder(descriptor)


def _require_gone(path: Path, holder: Holder, *, is_free: bool) -> None:
    """Raises `UserError` if whoever holds a lock is alive; waits where that is to be seen."""
    is_alive = holder.is_alive(is_free=is_free)
    if is_alive is None:
        log.info("%s is held by %s: %.0f s are waited for a sign of life", path.parent, holder, SILENCE)
        is_alive = _moves(path, SILENCE)
    if is_alive:
        raise UserError(
            f"{path.parent} is being written by another job ({holder}): wait for it, stop it, or choose another folder"
        )
    log.info("%s was held by %s, which is gone", path.parent, holder)


def _moves(path: Path, seconds: float) -> bool:
    """Whether the file's time changes: neither machine's clock is asked. One that is removed does not live."""
    first, until = _time_of(path), time.monotonic() + seconds
    while first is not None and time.monotonic() < until:
        time.sleep(min(_LOOK_EVERY, seconds / 4))
        if (now := _time_of(path)) != first:
            return now is not None
    return False


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """One process at a time, by a file that only one can make: on NFS, too."""
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            if not _moves(path, _CLAIM_SECONDS):
                path.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _flock(descriptor: int) -> bool | None:
    """Whether the system's lock was free, and is taken now; None where there are none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return None
        raise
    return True


def _time_of(path: Path) -> int | None:
    """When a file was changed, ns; None if it is gone. Opened for it, which lets a client of NFS ask the server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _read(path: Path) -> Holder | None:
    try:
        with path.open("rb") as file:
            return _parsed(file.read(_LONGEST))
    except FileNotFoundError:
        return None


def read_holder(descriptor: int) -> Holder | None:
    """Who a file says that holds its folder; None for one that is empty, or was cut short."""
    return _parsed(os.pread(descriptor, _LONGEST, 0))


def _parsed(text: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None


def write_holder(descriptor: int) -> str:
    """Writes that this process is the holder, and returns its token."""
    me = Holder(
        host=socket.gethostname(),
        boot=_boot(),
        processes=_processes(),
        pid=os.getpid(),
        begun=_begun(os.getpid()) or "",
        since=time.strftime("%Y-%m-%d %H:%M:%S%z"),
        token=secrets.token_hex(8),
    )
    text = json.dumps(me._asdict()).encode() + b"\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
    os.fsync(descriptor)
    return me.token


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _processes() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _begun(pid: int) -> str | None:
    """When a process began, in ticks of the system; None if it does not run."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if facts[0] in "ZX" else facts[19]
