"""From what a user names to sources: folders, files, containers, lists, URLs, DICOMweb servers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastfgssl.archive.sources.base import FileSource, Source, SourceOptions
from fastfgssl.archive.sources.containers import WithContainers
from fastfgssl.archive.sources.dicomweb import DicomWebSource, is_dicomweb
from fastfgssl.archive.sources.folder import FolderSource
from fastfgssl.archive.sources.listed import ListSource
from fastfgssl.archive.sources.network import public
from fastfgssl.archive.sources.remote import RemoteSource
from fastfgssl.runtime.errors import UserError, file_errors
from fastfgssl.runtime.files import user_path


def path_or_url(text: str) -> Path | str:
    """What a source is called: a URL as it is; a path of `file://` or of no protocol as a path."""
    protocol, found, rest = text.partition("://")
    if found and protocol == "file":
        return Path(rest)
    return text if found else user_path(text)


def open_sources(
    sources: Sequence[Path | str], lists: Sequence[Path] = (), options: SourceOptions | None = None
) -> list[Source]:
    """The sources at paths and URLs, and those that lists of files make.

    Raises UserError if one does not exist or lies in another, since images would count twice.
    """
    options = options or SourceOptions()
    for path in (*sources, *lists):
        if isinstance(path, Path):
            what = "list" if path in lists else "source"
            with file_errors(f"read the {what}", path):  # which a folder above it may forbid
                if not path.exists():
                    raise UserError(f"the {what} {path} does not exist")
    _check_apart(sources)
    opened: list[Source] = [_open(source, options) for source in sources]
    return [*opened, *(_with_containers(ListSource(path, options), options) for path in lists)]


def _open(source: Path | str, options: SourceOptions) -> Source:
    if isinstance(source, Path):
        return _with_containers(FolderSource(source, options), options)
    if not source.partition("://")[2].strip("/"):
        raise UserError(f"the source {source} names nothing behind its protocol")
    if is_dicomweb(source):
        return DicomWebSource(source, options)
    return _with_containers(RemoteSource(source, options), options)


def _with_containers(files: FileSource, options: SourceOptions) -> Source:
    return WithContainers(files, options) if options.depth else files


def _check_apart(sources: Sequence[Path | str]) -> None:
    resolved: set[Path] = set()
    for path in sorted(source.resolve() if isinstance(source, Path) else Path(public(source)) for source in sources):
        around = resolved.intersection((path, *path.parents))  # a folder sorts before what it contains
        if around:
            raise UserError(f"images would count twice: the source {path} lies in the source {around.pop()}")
        resolved.add(path)
