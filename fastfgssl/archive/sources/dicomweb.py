"""DICOMweb servers, `dicomweb+https://host/dicom-web`: listed by QIDO-RS, and read by WADO-RS, as they store it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from fastfgssl.archive.dicom.classes import without_pixels
from fastfgssl.archive.outcome import Unusable
from fastfgssl.archive.sources.base import Entry, SourceOptions, nothing
from fastfgssl.archive.sources.dicomweb_client import Client, Query
from fastfgssl.archive.sources.network import AWAY, Turn, from_server, in_order, public
from fastfgssl.runtime.errors import UserError, require_one_of

_PAGE = 500  # studies, series or instances that are asked for at once
_UID = r"[\w.-]{1,128}"  # more than the standard allows, and nothing that would lead elsewhere in a URL
_SCHEMES = ("dicomweb+http", "dicomweb+https")
_PLACE = re.compile(rf"(?P<root>.*?)(?:/studies(?:/(?P<study>{_UID})(?:/series(?:/(?P<series>{_UID}))?)?)?)?/*")
_NAMES_OF_SERIES = "Modality SeriesDescription SeriesNumber BodyPartExamined ProtocolName SeriesInstanceUID"
_TAGS_OF_SERIES = "00080060 0008103E 00200011 00180015 00181030 0020000E"
_OF_SERIES = frozenset((*_NAMES_OF_SERIES.split(), *_TAGS_OF_SERIES.split()))
"""Keys of a query that speak of series."""
_OURS = ("limit", "offset", "includefield")


class _Level(NamedTuple):
    """What is read of the items of a search, by tags."""

    uid: str
    what: str
    inside: str


_STUDIES, _SERIES, _INSTANCES = (
    _Level("0020000D", "", "00201206"),
    _Level("0020000E", "00080060", "00201209"),
    _Level("00080018", "00080016", ""),
)


class _Found(NamedTuple):
    uid: str
    what: str = ""
    """Of a series its modality, of an instance its class."""
    told: int = -1
    """How many it says are in it; -1 if it does not."""


class _Address(NamedTuple):
    root: str
    """Of the service, without credentials."""
    user: tuple[bytes, bytes] | None
    study: str
    series: str
    query: Query


def is_dicomweb(url: str) -> bool:
    """Whether a URL is meant for this source."""
    return url.lower().startswith("dicomweb")


class DicomWebSource:
    """The instances that a server has, or those of one study or series, or those that a query finds.

    They are called `STUDY/SERIES/INSTANCE.dcm`, by their UIDs, and come in the order of these names: as the files of a
    folder that is laid out so. An instance never changes under its UID. Raises UserError for what is no such URL.
    """

    def __init__(self, url: str, options: SourceOptions | None = None) -> None:
        self._options = options or SourceOptions()
        self._address = _parse(url)
        query = self._address.query
        self._of_studies = () if self._address.study else tuple(pair for pair in query if pair[0] not in _OF_SERIES)
        self._of_series = tuple(pair for pair in query if pair not in self._of_studies)
        self._client = Client(self._address.root, self._address.user)

    @property
    def name(self) -> str:
        return self._address.root.rpartition("/")[2]

    @property
    def root(self) -> Path:
        return Path(self._address.root)

    def where(self, name: bytes) -> str:
        return f"{self._address.root}{_path(name)}"

    def entries(self) -> Iterator[Entry]:
        studies = [_Found(self._address.study)]
        if not self._address.study:
            try:
                studies = self._search("/studies", _STUDIES, self._of_studies)
            except OSError as error:
                of_network = isinstance(error, (PermissionError, ConnectionError, TimeoutError))
                then = "" if of_network else f": is {self._address.root} the root of a DICOMweb service?"
                raise UserError(f"cannot list {self._address.root}/studies: {error.strerror or error}{then}") from None
        studies.sort(key=lambda study: f"{study.uid}/")
        lost = 0
        for study, listed in zip(studies, in_order(studies, self._list), strict=True):
            if not isinstance(listed, OSError):
                lost = 0
                yield from listed
                continue
            lost += 1
            if lost == min(AWAY, len(studies)) or isinstance(listed, PermissionError):
                raise UserError(f"cannot list {self.where(study.uid.encode())}: {listed.strerror or listed}")
            yield Entry(study.uid.encode(), -1, 0)  # reading says that it could not be listed

    def read(
        self, entries: Sequence[Entry], alive: Callable[[], object] = nothing
    ) -> Iterator[bytes | OSError | Unusable]:
        return in_order(entries, self._fetch, alive=alive)

    def _fetch(self, entry: Entry, turn: Turn) -> bytes | Unusable:
        if not entry.name.endswith(b".dcm"):
            raise OSError(None, "what is in it could not be listed")
        return self._client.instance(_path(entry.name), turn, self._options.max_bytes)

    def _list(self, study: _Found, turn: Turn) -> list[Entry]:
        """The entries of a study. Raises OSError."""
        entries = []
        at = f"/studies/{study.uid}/series"
        if self._address.series:
            some = [_Found(self._address.series)]
        else:
            count = -1 if self._of_series else study.told
            some = self._search(at, _SERIES, self._of_series, count)
            if len(some) < count:
                entries.append(_incomplete(study.uid, count, len(some)))
        for series in sorted(some, key=lambda series: f"{series.uid}/"):
            found = self._search(f"{at}/{series.uid}/instances", _INSTANCES, (), series.told)
            if len(found) < series.told:
                entries.append(_incomplete(f"{study.uid}/{series.uid}", series.told, len(found)))
            for name, instance in sorted((f"{instance.uid}.dcm", instance) for instance in found):
                skip = without_pixels(instance.what, series.what)
                entries.append(Entry(f"{study.uid}/{series.uid}/{name}".encode(), 0 if skip else -1, 0, skip))
        return entries

    def _search(self, path: str, level: _Level, query: Query, count: int = -1) -> list[_Found]:
        """What a search finds, page by page, each once; `count` of them are there, if it is not negative.

        Raises OSError.
        """
        found: dict[str, _Found] = {}
        offset = 0
        while len(found) != count:
            paged = (*query, ("limit", str(_PAGE)), ("offset", str(offset)))
            page = from_server(partial(self._client.search, path, paged))
            before = len(found)
            for item in page:
                uid, number = _value(item, level.uid), _value(item, level.inside)
                if not re.fullmatch(_UID, uid, re.ASCII) or not uid.strip("."):
                    raise OSError(None, "it lists something without a UID")
                told = int(number) if re.fullmatch("[1-9][0-9]{,8}", number, re.ASCII) else -1
                found.setdefault(uid, _Found(uid, _value(item, level.what), told))
            if len(found) == before:
                if len(page) >= _PAGE:
                    raise OSError(None, "it gives the same page again, and so not all that it has: narrow the URL")
                break
            offset += len(page)
        return list(found.values())


def _parse(url: str) -> _Address:
    shown = public(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    require_one_of(f"the protocol of {shown}", url.partition("://")[0].lower(), _SCHEMES)
    place = _PLACE.fullmatch(parts.path)
    if not host or not place or "/studies" in place["root"]:
        raise UserError(
            f"{shown} is no URL of a DICOMweb service: dicomweb+https://HOST[:PORT]/ROOT, and perhaps /studies/UID,"
            " /studies/UID/series/UID, or ?KEY=VALUE"
        )
    query = tuple(parse_qsl(parts.query, keep_blank_values=True))
    if any(key in _OURS for key, _ in query):
        raise UserError(f"{shown}: {', '.join(_OURS)} are set by this program: leave them out")
    user = (unquote(parts.username).encode(), unquote(parts.password or "").encode()) if parts.username else None
    host = f"[{host}]" if ":" in host else host
    root = f"{parts.scheme.removeprefix('dicomweb+')}://{host}{f':{port}' if port else ''}{place['root']}"
    return _Address(root, user, place["study"] or "", place["series"] or "", query)


def _path(name: bytes) -> str:
    """Of an entry, or of a study or series, below the root of the service."""
    uids = name.decode().removesuffix(".dcm").split("/")
    return "".join(f"/{level}/{uid}" for level, uid in zip(("studies", "series", "instances"), uids, strict=False))


def _incomplete(name: str, told: int, listed: int) -> Entry:
    why = f"incomplete listing: the server tells of {told} and lists {listed}"
    return Entry(name.encode(), 0, 0, why, damaged=True)


def _value(item: dict[str, Any], tag: str) -> str:
    """The first value of an attribute of DICOM JSON, as text; empty if there is none."""
    attribute = item.get(tag)
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    value = values[0] if isinstance(values, list) and values else ""
    return str(value) if isinstance(value, (str, int)) else ""
