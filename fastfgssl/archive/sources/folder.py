"""The image files found below the sources that the user hands in.

A source yields entries: an `id` that names the image in the archive, and `read()` for its bytes.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from fastfgssl.runtime.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp"})


class Entry(NamedTuple):
    """One image file."""

    id: str
    """Path relative to its source, with `/`; if there are several sources, after the source's name. Valid UTF-8."""
    path: str
    """Where it lies: absolute, as the file system spells it."""

    def read(self) -> bytes:
        """The file's bytes. Raises OSError, also for what is no file: opening a named pipe would wait for ever."""
        path = Path(self.path)
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(None, "not a regular file")
        return path.read_bytes()

    def __str__(self) -> str:
        return self.path


class Found(NamedTuple):
    """What lies below the sources."""

    roots: list[Path]
    """The folders that paths are relative to, absolute and without symbolic links."""
    entries: list[Entry]
    """In the order of the sources, then of the relative path's bytes: the same on every file system."""
    other_files: Counter[str]
    """Files that are no images by their name, counted by suffix, or by the pattern that leaves them out."""
    tables: list[Path]
    """CSV files among them, absolute."""


def find_images(sources: Sequence[Path], *, leave_out: Sequence[str] = (), advice: str = "") -> Found:
    """Finds the images in `sources`, which are folders (read recursively, through symbolic links) or single files.

    leave_out: patterns such as `*_mask.png`; files whose names match one are no images. advice: where images come from,
    for the message that there is none.
    Raises UserError if a source or a folder below it cannot be read, if sources overlap, if two images would have the
    same id, or if there is no image at all.
    """
    for source in sources:
        if not source.exists():
            raise UserError(f"the source {source} does not exist")
    _check_apart(sources)

    roots: dict[Path, None] = {}  # a dict for its order: a thousand single files may share one folder
    entries: list[Entry] = []
    others: Counter[str] = Counter()
    tables: list[Path] = []
    for source in sources:
        root = source.resolve() if source.is_dir() else source.parent.resolve()
        roots[root] = None
        prefix = f"{root.name}/" if len(sources) > 1 else ""
        for path in sorted(_walk(root), key=os.fsencode) if source.is_dir() else [source.name]:
            name, suffix = Path(path).name, Path(path).suffix.lower()
            pattern = next((pattern for pattern in leave_out if fnmatchcase(name, pattern)), None)
            if suffix in IMAGE_SUFFIXES and pattern is None:
                id = os.fsencode(prefix + path).decode("utf-8", "backslashreplace")
                entries.append(Entry(id, f"{root}/{path}"))
            else:
                others[pattern or suffix or "no suffix"] += 1
                if suffix == ".csv":
                    tables.append(root / path)
    if not entries:
        seen = ", ".join(f"{count} x {suffix}" for suffix, count in others.most_common(5)) or "no files"
        then = f"; {advice}" if advice else ""
        raise UserError(f"no images below {', '.join(map(str, sources))}, only {seen}{then}")
    _check_unique(entries)
    return Found(list(roots), entries, others, tables)


def _walk(root: Path) -> Iterator[str]:
    """Paths of all files below `root`, relative to it; a folder that links lead to twice is entered once."""
    entered = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        facts = Path(folder).stat()
        if (facts.st_dev, facts.st_ino) in entered:
            folders.clear()
            continue
        entered.add((facts.st_dev, facts.st_ino))
        folders.sort(key=os.fsencode)  # which of two ways to a folder comes first must not depend on the file system
        below = os.path.relpath(folder, root)
        yield from files if below == "." else (f"{below}/{file}" for file in files)


def _unreadable(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _check_apart(sources: Sequence[Path]) -> None:
    resolved: set[Path] = set()
    for source in sorted(source.resolve() for source in sources):  # a folder sorts before what it contains
        around = resolved.intersection((source, *source.parents))
        if around:
            raise UserError(f"images would count twice: the source {source} lies in the source {around.pop()}")
        resolved.add(source)


def _check_unique(entries: Sequence[Entry]) -> None:
    paths: dict[str, str] = {}
    for entry in entries:
        first = paths.setdefault(entry.id, entry.path)
        if first != entry.path:
            raise UserError(
                f"two images would have the id {entry.id}: {first} and {entry.path}; "
                "rename a source, or give the folder above both as the only source"
            )
