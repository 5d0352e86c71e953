"""Names of members: `scans.zip!/a/1.dcm`, each told apart from every other, whatever a container says."""

from __future__ import annotations

import hashlib
import os
import re

from fastfgssl.archive.sources.base import CONTAINER_SUFFIXES, container_suffix

WITHIN = b"!/"
LONGEST_NAME = 4096  # bytes of a member's name: no file system has longer ones, but a tar may have some of a MiB
_HERE = re.compile(rb"\A(?:\./+)+")
_SUFFIX = b"(?:%b)" % b"|".join(re.escape(suffix.encode()) for suffix in CONTAINER_SUFFIXES)
_SEEMS_WITHIN = re.compile(b"(%b(?:!\\d+)*)!/" % _SUFFIX, re.IGNORECASE)


class Names:
    """Names of one container, of which later ones that are the same get a number: `1.png!2`."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}  # by a hash: names are long

    def unique(self, name: bytes) -> bytes:
        while True:
            key = _hash(name)
            count = self._seen[key] = self._seen.get(key, 0) + 1
            if count == 1:
                return name
            name = b"%b!%d" % (name, count)


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def plain(name: bytes) -> bytes:
    """A member's name without a `./` that many tars begin with."""
    return _HERE.sub(b"", name) if name.startswith(b"./") else name


def told_apart(name: bytes) -> bytes:
    """A name that is no nested member's, such as `a.zip!%2F1.png` for `a.zip!/1.png`."""
    return _SEEMS_WITHIN.sub(rb"\1!%2F", name) if WITHIN in name else name


def container_of(name: bytes) -> bytes | None:
    """The file that an entry is read from as a member, or as a container that could not be listed; None for a file."""
    at = name.find(WITHIN)
    while at >= 0:
        if container_suffix(os.fsdecode(name[:at])):
            return name[:at]
        at = name.find(WITHIN, at + 1)
    return name if container_suffix(os.fsdecode(name)) else None


def parent_of(name: bytes) -> bytes:
    """The container that a member lies in: a member's own name may hold what stands between the two."""
    return name.rpartition(WITHIN)[0]
