"""A Ray cluster that is there already. Nothing here starts one."""

from __future__ import annotations

import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fastfgssl.runtime.errors import UserError, in_a_line

_CONNECT_SECONDS = 10.0
_HOW = (
    "start one by `ray start --head` on one machine and `ray start --address=HOST:6379` on the others, this one among"
    " them, and name it by --ray-address HOST:6379 or RAY_ADDRESS"
)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """While entered, this process is connected to the Ray cluster at `address`, by default at `$RAY_ADDRESS`.

    A process that is connected already stays so. Raises UserError if there is no such cluster, or this machine is none
    of its nodes, or it runs another version of Ray or Python.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install 'fastfgssl[ray]'") from None
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise UserError(f"--engine ray needs a Ray cluster that runs: {_HOW}")
    if address == "local":
        raise UserError(f"--engine ray starts no cluster, as the address local would: {_HOW}")
    if address.startswith("ray://"):
        raise UserError(f"{address} is the address for Ray's clients, which see no files of the cluster: {_HOW}")
    _check_reachable(address)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Ray will do in versions to come
            ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
    except Exception as error:  # of many types, and with advice for other situations
        raise UserError(f"cannot connect to the Ray cluster at {address}: {in_a_line(error)}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # which Ray takes
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises UserError if nothing answers there, or no Ray, which Ray itself tells after minutes."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal()):
        if address != "auto":
            raise UserError(f"the address of a Ray cluster is HOST:PORT, not {address!r}: {_HOW}")
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS) as connection:
            speaks_rpc = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_rpc(connection)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"no Ray cluster answers at {address} ({why}): {_HOW}") from None
    if not speaks_rpc:
        raise UserError(f"what answers at {address} is not Ray's port for nodes, 6379 if none was chosen: {_HOW}")


def _speaks_rpc(connection: socket.socket) -> bool:
    """Whether it answers as HTTP/2 does, by a frame of settings."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    return connection.recv(9, socket.MSG_WAITALL)[3:4] == b"\4"
