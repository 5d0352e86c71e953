"""Requests to a DICOMweb server: searches and instances, and what fails as an OSError that tells no secret.

Of HTTP clients it takes `requests`, which knows netrc, proxies and a hospital's own certificates, and lets bodies be
streamed; `dicomweb-client` needs it too, parses instances where bytes are wanted, and retries by rules of its own.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from functools import partial
from http import HTTPStatus
from typing import Any

from fastfgssl.archive.outcome import NEEDS_MEMORY, Unusable
from fastfgssl.archive.sources.network import Turn
from fastfgssl.runtime.errors import UserError

CONNECT, SILENCE = 10.0, 45.0
"""Seconds that a server may take for a connection, and between two pieces of an answer."""
_LARGEST_PAGE = 256 << 20  # bytes
_ALONE = 8 << 20  # bytes of an instance that may come before those in front of it have been taken
_ENVELOPE = 1 << 16  # bytes of a multipart message beside the instance
_PIECE = 1 << 16
_JSON = "application/dicom+json, application/json;q=0.9"
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_NEEDS = "set DICOMWEB_USER and DICOMWEB_PASSWORD, or DICOMWEB_TOKEN, or have a line in ~/.netrc"

Query = tuple[tuple[str, str], ...]


class Client:
    """What asks the server at `url`, from several threads. It may be pickled.

    user: name and password; by default those that the environment or netrc has.
    """

    def __init__(self, url: str, user: tuple[bytes, bytes] | None = None) -> None:
        self._url, self._user = url, user
        self._timeouts = CONNECT, SILENCE
        self._here = threading.local()
        _library()

    def search(self, path: str, query: Query) -> list[dict[str, Any]]:
        """What a search finds, a dict of DICOM JSON each. Raises OSError."""
        with self._answer(path, _JSON, query) as response:
            if response.status_code == HTTPStatus.NO_CONTENT:
                return []
            body = bytearray()
            for piece in response.iter_content(_PIECE):
                body += piece
                if len(body) > _LARGEST_PAGE:
                    raise OSError(None, f"it answers more than {_LARGEST_PAGE} bytes")
            kind = response.headers.get("Content-Type", "").partition(";")[0]
        if "json" not in kind:  # a page of another service, which asking again makes no other
            raise FileNotFoundError(None, f"it answers {kind[:40] or 'nothing'} and not DICOM JSON")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise OSError(None, "its answer is damaged, or no DICOM JSON")
        return found

    def instance(self, path: str, turn: Turn, limit: int) -> bytes | Unusable:
        """An instance as it is stored, of at most `limit` bytes. Raises OSError."""
        body = bytearray()
        try:
            with self._answer(path, _AS_STORED) as response:
                for piece in response.iter_content(_PIECE):
                    body += piece
                    turn.arrived += len(piece)
                    if len(body) > limit + _ENVELOPE:
                        return Unusable(f"too large: --max-bytes is {limit}")
                    if len(body) > _ALONE:
                        turn.wait()
            data = _instance(response.headers.get("Content-Type", ""), body)
        except MemoryError:
            return Unusable(NEEDS_MEMORY)
        return data if len(data) <= limit else Unusable(f"too large: {len(data)} bytes, --max-bytes is {limit}")

    @contextmanager
    def _answer(self, path: str, accept: str, query: Query = ()) -> Iterator[Any]:
        """An answer whose body is still to be read."""
        requests = _library()
        headers = {"Accept": accept} | ({"Accept-Encoding": "identity"} if accept == _AS_STORED else {})
        try:
            with self._session().get(
                f"{self._url}{path}", params=query, headers=headers, timeout=self._timeouts, stream=True
            ) as response:
                _check(response.status_code)
                yield response
        except requests.RequestException as error:
            raise _system_error(error) from None

    def _session(self) -> Any:
        """One of this thread, in which connections stay open."""
        session = getattr(self._here, "session", None)
        if session is None:
            session = self._here.session = _library().Session()
            session.max_redirects = 5
            token, user = os.environ.get("DICOMWEB_TOKEN", "").strip(), os.environ.get("DICOMWEB_USER", "")
            if self._user:
                session.auth = self._user
            elif token:
                session.auth = partial(_bear, token)
            elif user:
                session.auth = user.encode(), os.environ.get("DICOMWEB_PASSWORD", "").encode()
        return session

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_here"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _here=threading.local())


def _library() -> Any:
    try:
        import requests  # here, since few need it
    except ImportError:
        raise UserError("DICOMweb needs a package more: pip install 'fastfgssl[dicomweb]'") from None
    return requests


def _bear(token: str, request: Any) -> Any:
    """Unlike a header of the session, this goes before what netrc says, and is left out after a redirect elsewhere."""
    request.headers["Authorization"] = f"Bearer {token}"
    return request


def _check(status: int) -> None:
    """Raises OSError unless an answer is one that was asked for."""
    known = {item.value: item.phrase for item in HTTPStatus}
    said = f"{status} {known[status]}" if status in known else str(status)
    if status == HTTPStatus.UNAUTHORIZED:
        raise PermissionError(None, f"it answers {said}: {_NEEDS}")
    if status in (HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED):
        raise PermissionError(None, f"it answers {said}")
    if status == HTTPStatus.NOT_FOUND:
        raise FileNotFoundError(None, f"it answers {said}")
    if status not in (HTTPStatus.OK, HTTPStatus.NO_CONTENT):
        raise OSError(None, f"it answers {said}")


def _instance(kind: str, body: bytearray) -> bytes:
    """The instance in an answer's body: the first part of a multipart message, or all of it. Raises OSError."""
    header = Message()
    header["Content-Type"] = kind
    boundary = header.get_param("boundary")
    if header.get_content_type() == "application/dicom":
        return bytes(body)
    if header.get_content_maintype() != "multipart" or not isinstance(boundary, str) or not boundary:
        raise OSError(None, f"it answers {kind[:40] or 'nothing'} where an instance should be")
    delimiter = b"--" + boundary.encode("latin-1", "replace")
    start = body.find(delimiter)
    start = body.find(b"\r\n\r\n", start) if start >= 0 else start
    if start < 0:
        raise OSError(None, "its answer is cut off, or no multipart message")
    end = body.find(b"\r\n" + delimiter, start + 2)
    if end < 0:
        raise OSError(None, "its answer is cut off")
    return bytes(memoryview(body)[start + 4 : end])


def _system_error(error: Exception) -> OSError:
    """Without what the library says, which quotes the query, and may quote a header."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, ssl.SSLError):
            if why := getattr(cause, "verify_message", ""):
                why = f"{why} (REQUESTS_CA_BUNDLE names a file of certificates to trust)"
            return ConnectionError(None, f"TLS: {why or cause.reason}")
    if any("Timeout" in type(cause).__name__ for cause in chain):
        return TimeoutError(None, "it does not answer in time")
    for cause in chain:
        if type(cause).__module__ in ("builtins", "socket") and isinstance(cause, OSError) and cause.strerror:
            return ConnectionError(None, cause.strerror)
    names = {type(cause).__name__ for cause in chain}
    if names & {"InvalidHeader", "InvalidURL", "TooManyRedirects", "InvalidSchema", "InvalidProxyURL"}:
        return PermissionError(None, f"it cannot be asked: {type(error).__name__}")
    return ConnectionError(None, "the connection breaks off")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it, from the outside in: libraries wrap it in arguments too."""
    seen: list[BaseException] = []
    todo = [error]
    while todo:
        found = todo.pop(0)
        if isinstance(found, BaseException) and not any(found is one for one in seen):
            seen.append(found)
            yield found
            todo += [found.__cause__, found.__context__, getattr(found, "reason", None), *found.args]
