"""What must hold of zips and tars that strangers wrote, as in `hostile`."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import zstandard

from fastfgssl.archive.sources.base import SourceOptions
from fastfgssl.archive.sources.containers import WithContainers
from fastfgssl.archive.sources.names import container_of
from helpers.in_memory import InMemory
from helpers.promises import Broken, require

_EXPANDED = 1 << 24


def zips(data: bytes) -> bool:
    good, damaged = _members_and_damage(".zip", data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as other:
            names = {info.filename.encode(): info for info in other.infolist()}
            # of members of one name, and where the directory is damaged, others may be meant
            same = len(names) == len(other.infolist()) and not damaged and not any(b"!2" in name for name in good)
            for name, content in good.items() if same else ():
                if name in names and not names[name].flag_bits & 1:
                    require(other.read(names[name]) == content, f"zipfile reads the same of {name!r}")
    except Broken:
        raise
    except Exception:  # it refuses a whole container for one member, and much that other programs read
        pass
    return bool(good)


def tars(data: bytes) -> bool:
    """The first byte chooses how it is compressed."""
    choice, data = data[0] % 4 if data else 0, data[1:]
    suffix, whole = {1: (".tar.gz", gzip.compress(data, 1)), 2: (".tar.zst", zstandard.compress(data, 1))}.get(
        choice, (".tar", data)
    )
    good = _members(suffix, whole)
    if choice:
        # and more where it is cut off within a zip, which can be sought in only then
        require(good.items() <= _members(".tar", data).items(), "a plain tar gives all that it gives compressed")
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as other:
            found = [info for info in other if info.isreg() and not info.sparse and not info.pax_headers]
            for info in found if len({info.name for info in found}) == len(found) else ():
                name = info.name.encode("utf-8", "surrogateescape").removeprefix(b"./")
                if name in good:
                    file = other.extractfile(info)
                    require(file is not None and file.read() == good[name], f"tarfile reads the same of {name!r}")
    except Broken:
        raise
    except Exception:
        pass
    return bool(good)


def gzips(data: bytes) -> bool:
    """A tar whose compressed bytes themselves are damaged."""
    return bool(_members(".tar.gz", data))


def _members(suffix: str, data: bytes) -> dict[bytes, bytes]:
    return _members_and_damage(suffix, data)[0]


def _members_and_damage(suffix: str, data: bytes) -> tuple[dict[bytes, bytes], bool]:
    """What can be read of the members of a container, by their names within it, and whether any of it is damaged."""
    name = f"a{suffix}"
    options = SourceOptions(depth=2, max_bytes=1 << 22, max_expanded=_EXPANDED)
    source = WithContainers(InMemory(name, data), options)  # type: ignore[arg-type]
    entries = list(source.entries())
    names = {entry.name for entry in entries}
    require(len(names) == len(entries), "no two entries have the same name")
    require(all(container_of(name_) == name.encode() for name_ in names), "every name leads to its container")
    wanted = [entry for entry in entries if not entry.skip]
    read = list(source.read(wanted))
    require(len(read) == len(wanted), "an outcome for each entry")
    good = {
        entry.name.removeprefix(name.encode() + b"!/"): found
        for entry, found in zip(wanted, read, strict=True)
        if isinstance(found, bytes)
    }
    for entry, found in zip(wanted, read, strict=True):
        require(not isinstance(found, bytes) or len(found) == entry.size, "as many bytes as were listed")
        require(not isinstance(found, OSError), f"what is there can be read: {found}")
    require(sum(len(content) for content in good.values()) <= _EXPANDED, "no more bytes than are allowed")
    return good, any(entry.damaged for entry in entries)
