"""The key that takes names out of an archive: what is in it is called by their HMAC, which only the key can repeat."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path

from fastfgssl.runtime.errors import UserError, file_errors

_BLOCK = 64  # bytes of SHA-256
_GROUP_BITS = 56  # what random numbers for groups are made of, see `data.philox`


class Key:
    """HMAC-SHA256 (RFC 2104) under one key, for many names: its two first blocks are hashed once."""

    def __init__(self, secret: bytes, *, made: bool = False) -> None:
        self.made = made
        """Whether it is a new one."""
        padded = secret.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))
        self.fingerprint = self._digest(b"key")[:16].hex()
        """Tells keys apart, and nothing of what they are."""

    def id(self, source: str, name: bytes) -> bytes:
        """128 bits that stand for an input: its source's name and its own below it."""
        return self._digest(b"path\0" + os.fsencode(source) + b"/" + name)[:16]

    def group(self, name: str) -> int:
        """56 bits that stand for a group, such as a patient: the same in every archive under the same key."""
        digest = self._digest(b"group\0" + name.encode("utf-8", "surrogateescape"))
        return int.from_bytes(digest[:8], "big") >> 64 - _GROUP_BITS

    def _digest(self, message: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()


def load_key(path: Path, *, make: bool = True) -> Key:
    """The key in a file, 32 bytes as hexadecimal digits; made, readable by its owner alone, if there is none.

    make: False if there must be one.
    Raises UserError if it can be neither read nor made, or is no key.
    """
    with file_errors("read the key", path):
        missing = not path.exists()
    if missing and not make:
        raise UserError(
            f"the key {path} is not there, and nothing can be added to an archive without its own: put a copy back, or"
            " say with --key where it is; --overwrite makes the archive anew, with other ids"
        )
    if missing:
        with file_errors("write the key", path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
    with file_errors("read the key", path):
        text = path.read_bytes().strip()
    if not re.fullmatch(rb"[0-9a-fA-F]{64}", text):
        raise UserError(f"{path} is no key: it must hold 64 hexadecimal digits; where there is no file, one is made")
    return Key(bytes.fromhex(text.decode()), made=missing)


def key_advice(path: Path, key: Key) -> str:
    """What its owner should know: that it is a new one, or that others may read it. Empty if all is well."""
    if key.made:
        return f"{path} was made: keep a copy, and name it with --key where ids and groups are to be the same"
    with file_errors("read the key", path):
        exposed = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    return f"{path} can be read by others, who could try names with it: chmod 600 it" if exposed else ""


def _create(path: Path) -> None:
    """Writes a new key as a whole, unless another process was faster."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # for its owner alone
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secrets.token_hex(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
