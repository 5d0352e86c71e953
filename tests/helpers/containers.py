"""Zips and tars of files, whole, damaged and hostile."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import zstandard

from fastfgssl.archive.sources.base import Entry, Source


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return buffer.getvalue()


def tar_of(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT, others: Iterable[tarfile.TarInfo] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as out:
        for info in others:
            out.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def container_of(suffix: str, files: dict[str, bytes]) -> bytes:
    if suffix == ".zip":
        return zip_of(files)
    data = tar_of(files)
    if suffix in (".tar.gz", ".tgz"):
        return gzip.compress(data, mtime=0)
    return zstandard.compress(data) if suffix == ".tar.zst" else data


def contents_of(source: Source) -> dict[str, bytes | str]:
    """The bytes of each entry of a source, or what becomes of it instead."""
    entries = list(source.entries())
    assert len({entry.name for entry in entries}) == len(entries)
    wanted = [entry for entry in entries if not entry.skip]
    read = dict(zip((entry.name for entry in wanted), source.read(wanted), strict=True))
    return {_text(entry): _said(entry) if entry.skip else _data(read[entry.name]) for entry in entries}


def _text(entry: Entry) -> str:
    return entry.name.decode("utf-8", "backslashreplace")


def _said(entry: Entry) -> str:
    return f"{'quarantined' if entry.damaged else 'skipped'}: {entry.skip}"


def _data(read: object) -> bytes | str:
    return read if isinstance(read, bytes) else f"{type(read).__name__}: {getattr(read, 'strerror', None) or read}"


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
