"""A bucket of an S3 server over real HTTP, which fails when it is told to."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.request import Request, urlopen


class Bucket:
    """`hospital`, and an application between its server and the clients."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self.client: Any = None
        self.calls, self.failures, self.match = 0, 0, ""
        """Requests so far; how many of those that read what has `match` in its path are yet answered by 500."""
        self.latency = 0.0
        """Seconds before each answer."""
        self.read: list[str] = []
        """Paths that were asked for, with GET."""

    def __call__(self, environ: dict, start_response: Any) -> Any:
        self.calls += 1
        time.sleep(self.latency)
        if environ["REQUEST_METHOD"] == "GET":
            self.read.append(environ["PATH_INFO"])
        if self.failures > 0 and self.match in environ["PATH_INFO"] and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            self.failures -= 1
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        return self._application(environ, start_response)


@contextmanager
def serve_bucket() -> Iterator[Bucket]:
    """Clients of this process and of those that it starts find the server by their environment."""
    import boto3
    from moto import server
    from werkzeug.serving import make_server

    bucket = Bucket(server.DomainDispatcherApplication(server.create_backend_app))
    http = make_server("127.0.0.1", 0, bucket, threaded=True)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{http.server_port}"
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with patch.dict(os.environ, {"AWS_ENDPOINT_URL": url, **credentials}):
        bucket.client = boto3.client("s3")
        bucket.client.create_bucket(Bucket="hospital")
        try:
            yield bucket
        finally:
            bucket.failures = 0
            with urlopen(Request(f"{url}/moto-api/reset", method="POST")):
                pass  # what is stored is the process's
            http.shutdown()
            http.server_close()


def put(bucket: Bucket, files: dict[str, bytes]) -> None:
    """Objects of these keys."""
    for name, data in files.items():
        bucket.client.put_object(Bucket="hospital", Key=name, Body=data)


def put_folder(bucket: Bucket, folder: Path, prefix: str) -> str:
    """All files of a folder below `prefix`, as a URL."""
    put(
        bucket,
        {f"{prefix}/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()},
    )
    return f"s3://hospital/{prefix}"
