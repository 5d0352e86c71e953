"""Object stores and whatever else `fsspec` reads by a URL: `s3://bucket/prefix`, `gs://`, `https://`, ...

Credentials and endpoints are what the environment says, as of every program that uses these stores.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from fastfgssl.archive.outcome import NEEDS_MEMORY, Unusable
from fastfgssl.archive.sources.base import (
    DICOM_PREFIX,
    UNKNOWN,
    Entry,
    SourceOptions,
    begins_as_dicom,
    kind_by_name,
    nothing,
)
from fastfgssl.archive.sources.network import Turn, from_server, in_order, public, system_error
from fastfgssl.runtime.errors import UserError, in_a_line

_BLOCK = 4 << 20  # bytes of a container that are asked for at once
_EXTRAS = {"s3": "fastfgssl[s3]", "s3a": "fastfgssl[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
# one request an object, tried again here alone, where it is known how often and how long
_S3 = {
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 1}},
    "max_concurrency": 1,
}


class RemoteSource:
    """The objects below a URL, or the one that it names. Raises UserError if it cannot be reached."""

    def __init__(self, url: str, options: SourceOptions | None = None) -> None:
        self._options = options or SourceOptions()
        self._url = url.rstrip("/")
        self._system: Any = None
        self.only = None
        fs, path = self._opened()
        try:
            info = from_server(lambda: fs.info(path))
        except FileNotFoundError:
            or_away = " or cannot be reached" if url.startswith("http") else ""  # which of both, fsspec does not tell
            raise UserError(f"the source {public(url)} does not exist{or_away}") from None
        except OSError as error:
            raise UserError(f"cannot read the source {public(url)}: {error.strerror or error}") from error
        if info["type"] == "file":
            self._url, _, name = self._url.rpartition("/")
            self.only = os.fsencode(name)

    @property
    def name(self) -> str:
        return public(self._url).rpartition("/")[2]

    @property
    def root(self) -> Path:
        return Path(public(self._url))

    def entries(self) -> Iterator[Entry]:
        fs, path = self._opened()
        if self.only is None:
            yield from self._below(path, "")
        else:
            name = os.fsdecode(self.only)
            yield from self._objects("", [(name, from_server(lambda: fs.info(f"{path}/{name}")))])

    def read(
        self, entries: Sequence[Entry], alive: Callable[[], object] = nothing
    ) -> Iterator[bytes | OSError | Unusable]:
        fs, path = self._opened()

        def fetch(entry: Entry, turn: Turn) -> bytes | Unusable:
            try:
                return fs.cat_file(f"{path}/{os.fsdecode(entry.name)}")
            except MemoryError:
                return Unusable(NEEDS_MEMORY)
            except Exception as error:
                raise system_error(error) from error

        return in_order(entries, fetch, size=lambda entry: entry.size)

    def open(self, name: bytes) -> BinaryIO:
        fs, path = self._opened()
        file = from_server(lambda: fs.open(f"{path}/{os.fsdecode(name)}", "rb", block_size=_BLOCK))
        return cast(BinaryIO, io.BufferedReader(_Patient(file), 1 << 20))

    def where(self, name: bytes) -> str:
        return f"{public(self._url)}/{os.fsdecode(name)}"

    def _below(self, path: str, folder: str) -> Iterator[Entry]:
        """What is in a folder, in the order that `FolderSource` has."""
        fs, _ = self._opened()
        where = f"{path}/{folder}".rstrip("/")
        try:
            found = from_server(lambda: fs.ls(where, detail=True))
        except OSError as error:
            url = f"{public(self._url)}/{folder}"
            raise UserError(f"cannot list {url}: {error.strerror or error}: is the server away?") from error
        items = []
        for item in found:
            name = item["name"].rstrip("/").rpartition("/")[2]
            if item["name"].rstrip("/") != where:  # which a store may have as an object of no bytes
                items.append((os.fsencode(f"{name}/" if item["type"] == "directory" else name), name, item))
        del found
        items.sort(key=lambda item: item[0])
        entries = self._objects(folder, [(name, item) for _, name, item in items if item["type"] != "directory"])
        for _, name, item in items:
            if item["type"] != "directory":
                yield next(entries)
            else:
                yield from self._below(path, f"{folder}{name}/")

    def _objects(self, folder: str, items: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[Entry]:
        """The entries of objects in a folder. Of those whose names tell nothing, the first bytes are asked for."""
        fs, path = self._opened()
        kinds = [kind_by_name(f"{folder}{name}".split("/"), self._options) for name, _ in items]
        unknown = [
            name
            for (name, item), kind in zip(items, kinds, strict=True)
            if kind in UNKNOWN and (item["size"] or 0) >= DICOM_PREFIX
        ]

        def begin(name: str, turn: Turn) -> bytes:
            return from_server(lambda: fs.cat_file(f"{path}/{folder}{name}", start=0, end=DICOM_PREFIX))

        begins = dict(zip(unknown, in_order(unknown, begin), strict=True))
        for (name, item), kind in zip(items, kinds, strict=True):
            data = begins.get(name, b"")
            if isinstance(data, OSError):
                kind = kind if isinstance(data, PermissionError) else ""  # it is asked for again when it is read
            elif begins_as_dicom(data):
                kind = ""
            yield self._entry(f"{folder}{name}", item, kind)

    def _entry(self, name: str, item: dict[str, Any], kind: str) -> Entry:
        if kind:
            return Entry(os.fsencode(name), 0, 0, kind)
        changed = next((item[key] for key in ("ETag", "etag", "LastModified", "mtime", "created") if item.get(key)), "")
        version = int.from_bytes(hashlib.blake2b(str(changed).encode(), digest_size=7).digest(), "big")
        return Entry(os.fsencode(name), int(item["size"] or 0), version)

    def _opened(self) -> tuple[Any, str]:
        """The file system, of this process, and the path there."""
        if self._system is None:
            self._system = file_system(self._url)
        return self._system, self._system._strip_protocol(self._url)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_system": None}


class _Patient(io.RawIOBase):
    """A remote file of which reads that fail are tried again."""

    def __init__(self, file: Any) -> None:
        self._remote = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._remote.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        at = self._remote.tell()

        def read() -> bytes:
            self._remote.seek(at)
            return self._remote.read(len(buffer))

        data = from_server(read)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._remote.close()
        super().close()


def file_system(url: str) -> Any:
    """The `fsspec` file system of a URL, for this process. Raises UserError for a protocol that cannot be read."""
    import fsspec  # here, since it is slow and few need it

    protocol = url.partition("://")[0]
    options: dict[str, Any] = _S3 if protocol in ("s3", "s3a") else {}
    try:
        options |= fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(url)
        if "host" in options:  # whose packages read one thing at a time
            raise ValueError(f"of servers, those of https and DICOMweb are, and object stores, but none of {protocol}")
        system = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        package = _EXTRAS.get(protocol, "")
        raise UserError(f"{public(url)} cannot be read: {f'pip install {package!r}' if package else error}") from None
    except ValueError as error:
        raise UserError(f"{public(url)} cannot be read: {in_a_line(error)}") from None
    if protocol in ("s3", "s3a"):
        system.retries = 2
    return system
