"""Folders, read recursively, and single files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastfgssl.archive.dicom.slides import PREFIX, slide_file, slides_among
from fastfgssl.archive.outcome import NEEDS_MEMORY, Unusable
from fastfgssl.archive.sources.base import (
    DICOM_PREFIX,
    UNKNOWN,
    Contents,
    Entry,
    SourceOptions,
    begins_as_dicom,
    kind_by_name,
    nothing,
)
from fastfgssl.runtime.errors import UserError

OUTSIDE = "link out of the source"
TOO_LONG = "path too long"
_OF_SYSTEM = (b"lost+found", b"System Volume Information", b"$RECYCLE.BIN", b".Trashes")
"""Folders at the root of disks, which mostly nobody but the system may read."""


class _Found(NamedTuple):
    """In a folder."""

    name: bytes
    """Below the source; a folder's has a `/` at its end, by which it sorts too."""
    is_link: bool


class FolderSource:
    """The files below a folder, or one file, at `path`.

    Symbolic links are followed within the folder, and a folder that several lead to is entered once, by the first way.
    Those that lead out of it are listed, to be skipped. Where slides are read, the levels of a DICOM slide that lie in
    one folder are one entry, of the name of the largest, and the others are skipped.
    """

    def __init__(self, path: Path, options: SourceOptions | None = None) -> None:
        self._options = options or SourceOptions()
        self.only = None if path.is_dir() else os.fsencode(path.name)
        """The file's name, if it is a single one."""
        self.root = path.resolve() if self.only is None else path.parent.resolve()
        """The folder that names are relative to: absolute, without symbolic links."""
        self._root = os.fsencode(self.root).rstrip(b"/") + b"/"
        self._stays_within = self.only is None and not self._options.follow_links

    @property
    def name(self) -> str:
        return self.root.name

    def entries(self) -> Iterator[Entry]:
        if self.only is not None:
            yield self._entry(self.only, is_link=False)  # or it is, and its user has named it
            return
        entered: set[tuple[int, int]] = set()
        of_slides: dict[bytes, Entry] = {}
        waiting = [_Found(b"", False)]  # the next last: folders may lie in each other deeper than Python calls go
        while waiting:
            name, is_link = waiting.pop()
            if name and not name.endswith(b"/"):
                yield of_slides.pop(name) if name in of_slides else self._entry(name, is_link=is_link)
            elif is_link and self._leaves(name[:-1]):
                yield Entry(name[:-1], 0, 0, OUTSIDE)
            elif name[:-1].rpartition(b"/")[2] in _OF_SYSTEM and not os.access(self._path(name), os.R_OK | os.X_OK):
                yield Entry(name[:-1], 0, 0, "folder of the system")
            elif (found := self._within(name, entered)) is not None:
                waiting += reversed(found)
                of_slides |= self._of_slides(found)
            else:
                yield Entry(name[:-1], 0, 0, TOO_LONG, True)

    def read(
        self, entries: Sequence[Entry], alive: Callable[[], object] = nothing
    ) -> Iterator[Contents | OSError | Unusable]:
        for entry in entries:
            try:
                data = self._read(entry.name)
                is_level = self._options.slides and (file := slide_file(data)) and not file.flags.beside_slide
                yield [data, *map(self._read, self._smaller_levels(entry.name))] if is_level else data
            except OSError as error:
                yield error
            except MemoryError:
                yield Unusable(NEEDS_MEMORY)

    def open(self, name: bytes) -> BinaryIO:
        file = open_file(self._path(name))
        # what was no link out of the source when it was listed, may have become one in the hours since
        if self._stays_within and not os.readlink(b"/proc/self/fd/%d" % file.fileno()).startswith(self._path(b"")):  # noqa: PTH115 - in bytes
            file.close()
            raise OSError(None, f"it has become a {OUTSIDE}")
        return file

    def where(self, name: bytes) -> str:
        return f"{self.root}/{os.fsdecode(name)}"

    def _read(self, name: bytes) -> bytes:
        with self.open(name) as file:
            return file.read()

    def _prefix(self, name: bytes) -> bytes:
        """Its beginning, if that is DICOM's; empty for what cannot be read, which reading tells."""
        try:
            with self.open(name) as file:
                return file.read(PREFIX) if begins_as_dicom(file.read(DICOM_PREFIX)) and not file.seek(0) else b""
        except OSError:
            return b""

    def _of_slides(self, found: list[_Found]) -> dict[bytes, Entry]:
        """The entries of files in a folder that belong to DICOM slides, by name."""
        if not self._options.slides:
            return {}
        entries = {name: self._entry(name, is_link=is_link) for name, is_link in found if not name.endswith(b"/")}
        slides, skipped = slides_among([name for name, entry in entries.items() if not entry.skip], self._prefix)
        made = {name: Entry(name, 0, 0, why) for name, why in skipped.items()}
        for slide in slides:
            files = [entries[name] for name in slide]
            made[slide[0]] = Entry(slide[0], sum(file.size for file in files), max(file.version for file in files))
        return made

    def _smaller_levels(self, name: bytes) -> list[bytes]:
        """Of a slide, by its largest level."""
        if self.only is not None:
            return []
        found = self._within(name[: name.rfind(b"/") + 1], set()) or []
        names = [one for one, is_link in found if not one.endswith(b"/") and not self._entry(one, is_link=is_link).skip]
        return next((slide[1:] for slide in slides_among(names, self._prefix)[0] if slide[0] == name), [])

    def _within(self, folder: bytes, entered: set[tuple[int, int]]) -> list[_Found] | None:
        """What is in a folder, by the bytes of its names below the source; None if its own is too long to open it.

        Nothing if it was `entered` before: its device and number are added. Raises UserError if it cannot be read.
        """
        path = self._path(folder)
        try:
            facts = os.stat(path)  # noqa: PTH116 - in bytes, of which pathlib knows nothing
            if (facts.st_dev, facts.st_ino) in entered:
                return []
            entered.add((facts.st_dev, facts.st_ino))
            with os.scandir(path) as found:
                return sorted(_Found(folder + item.name + b"/" * _is_folder(item), item.is_symlink()) for item in found)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise UserError(f"cannot read the folder {os.fsdecode(path)}: {error.strerror}") from error

    def _entry(self, name: bytes, *, is_link: bool) -> Entry:
        kind = self._kind(name)
        if not kind and is_link and self._leaves(name):
            kind = OUTSIDE
        if kind:
            return Entry(name, 0, 0, kind)
        try:
            facts = os.stat(self._path(name))  # noqa: PTH116 - in bytes
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return Entry(name, 0, 0, TOO_LONG, True)
            return Entry(name, 0, 0)  # reading it says why
        if not stat.S_ISREG(facts.st_mode):
            return Entry(name, 0, 0, "not a regular file")  # opening a named pipe would wait for ever
        return Entry(name, facts.st_size, facts.st_mtime_ns)

    def _kind(self, name: bytes) -> str:
        """Why it is skipped, as its name says, or its bytes where that says nothing; empty for what may be an image."""
        kind = kind_by_name(os.fsdecode(name).split("/"), self._options)
        return "" if kind in UNKNOWN and _is_dicom(self._path(name)) else kind

    def _leaves(self, name: bytes) -> bool:
        """Whether a symbolic link leads out of the source."""
        if self._options.follow_links:
            return False
        try:
            return not Path(self.where(name)).resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):  # links in a circle
            return False

    def _path(self, name: bytes) -> bytes:
        return self._root + name


def _is_dicom(path: bytes) -> bool:
    """Whether a file's bytes say so: names of DICOM files say nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):  # a name in a list may hold anything
        return False
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return regular and begins_as_dicom(os.pread(descriptor, DICOM_PREFIX, 0))
    except OSError:
        return False
    finally:
        os.close(descriptor)


def read_file(path: bytes | str) -> bytes:
    """A regular file's bytes. Raises OSError, also for what is none."""
    with open_file(path) as file:
        return file.read()


def open_file(path: bytes | str) -> BinaryIO:
    """Opens a regular file. Raises OSError, also for what is none: opening a named pipe would wait for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # of a list
        raise OSError(None, "no file can have this name") from None
    file = open(descriptor, "rb")  # noqa: PTH123, SIM115 - of a descriptor; closed by the caller
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return file
    file.close()
    raise OSError(None, "not a regular file")


def _is_folder(item: os.DirEntry[bytes]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # links in a circle
        return False
