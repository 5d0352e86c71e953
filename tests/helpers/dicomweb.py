"""A real DICOMweb server, Orthanc, and a proxy before it that fails as servers and networks do."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

USER, PASSWORD = "reader", "s3cret-word"
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")  # of Debian's package


@contextmanager
def orthanc(folder: Path, files: list[bytes]) -> Iterator[int]:
    """The port of a server on this machine's loopback that has `files`; what it keeps is in `folder`."""
    program = shutil.which("Orthanc")
    if program is None or not _PLUGIN.exists():
        pytest.skip("needs Orthanc: apt-get install orthanc orthanc-dicomweb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": [str(_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        with requests.Session() as session:
            session.auth = USER, PASSWORD
            for data in files:
                answer = session.post(f"http://127.0.0.1:{port}/instances", data=data, timeout=120)
                assert answer.json()["Status"] == "Success"
        yield port
    finally:
        process.terminate()
        process.wait(20)


class Proxy(ThreadingHTTPServer):
    """Hands requests on, but for those whose path matches `match`, while `times` is above 0, which fail as `fault`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = port
        self.fault, self.match, self.times = "", "", 0
        self.delay = 0.0
        """Seconds before an instance is given."""
        self.canned: dict[str, object] = {}
        """DICOM JSON by path: what is answered whatever the query."""
        self.asked: list[str] = []
        """Paths of all requests, with their queries."""
        self.authorization: str | None = None
        """What the last one had."""
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"dicomweb+http://127.0.0.1:{self.server_port}/dicom-web"

    def fail(self, fault: str, match: str, times: int = 1 << 30) -> None:
        self.fault, self.match, self.times = fault, match, times


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    server = Proxy(port)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        proxy = self.server
        proxy.asked.append(self.path)
        proxy.authorization = self.headers.get("Authorization")
        if (path := self.path.partition("?")[0]) in proxy.canned:
            return self._answer(200, "application/dicom+json", json.dumps(proxy.canned[path]).encode())
        if "/instances/" in self.path and proxy.delay:
            time.sleep(proxy.delay)
        fails = proxy.times > 0 and re.search(proxy.match, self.path)
        proxy.times -= bool(fails)
        fault = proxy.fault if fails else ""
        if fault.isdigit():
            return self._answer(int(fault), "text/plain", b"")
        if fault == "hangs":
            proxy.closing.wait(20)
        if fault in ("hangs", "answers nothing"):
            self.close_connection = True
            return None
        if fault == "is a portal":
            return self._answer(200, "text/html", b"<html>please log in</html>")
        behind = HTTPConnection("127.0.0.1", proxy.behind, timeout=120)
        behind.request("GET", self.path, headers={k: v for k, v in self.headers.items() if k != "Connection"})
        answer = behind.getresponse()
        body, kind = answer.read(), answer.headers.get("Content-Type", "")
        behind.close()
        encoding = answer.headers.get("Content-Encoding", "")
        if fault == "is malformed":
            body = body.replace(b"--", b"##") if kind.startswith("multipart") else b"[{" + body
        cut = len(body) // 2 if fault.startswith("cuts") else len(body)
        return self._answer(answer.status, kind, body, cut, encoding, told=fault != "cuts and does not tell")

    def _answer(
        self, status: int, kind: str, body: bytes, cut: int | None = None, encoding: str = "", told: bool = True
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        if told:
            self.send_header("Content-Length", str(len(body)))
        if not told or cut not in (None, len(body)):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body[:cut])

    def log_message(self, *arguments: object) -> None:
        pass
