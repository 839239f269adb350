"""A server of S3's protocol on loopback, for tests of paths in buckets: moto behind a front that counts and fails."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

BUCKET = "bucket-a"
# What sends s3fs and tensorstore elsewhere, and the credentials that moto takes.
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Without credentials nobody asks the network for those of a machine in the cloud.
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Server:
    """A running server.

    Attributes:
      url: its address.
      requests: (method, path) of every request so far.
      fault: called with (method, path) of each request; a status from it is the answer, and nothing else is done.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self._moto = DomainDispatcherApplication(create_backend_app)
        # Its look at a condition and the write are not one step.
        self._lock = threading.Lock()
        self._http = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        status = self.fault(method, path)
        if status is not None:
            start_response(f"{status} told", [("Content-Length", "0")])
            return [b""]
        with self._lock:
            return list(self._moto(environ, start_response))

    def _objects(self) -> dict[str, Any]:
        return s3_backends["123456789012"]["aws"].buckets[BUCKET].keys

    def content(self, name: str) -> bytes:
        """The bytes of an object."""
        with self._lock:
            return self._objects()[name].value

    def names(self) -> list[str]:
        """The names of all objects, sorted."""
        with self._lock:
            return sorted(self._objects().keys())

    def forget(self) -> None:
        """Leaves one bucket with nothing in it, and serves well."""
        backend = s3_backends["123456789012"]["aws"]
        with self._lock:
            backend.reset()
            backend.create_bucket(BUCKET, "us-east-1")
        self.requests.clear()
        self.fault = lambda method, path: None

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Ends serving."""
        self._http.shutdown()
        self._http.server_close()


class _Silent(MotoRequestHandler):
    # Of HTTP/1.0, as moto's own: some of its answers have no length, and end with the connection alone.
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing."""


@contextmanager
def running() -> Iterator[Server]:
    """A server for as long as the block, which this process and its children take for Amazon's."""
    server = Server()
    server.start()
    settings = {**SETTINGS, "AWS_ENDPOINT_URL": server.url}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield server
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.stop()
