"""A server of Google Cloud Storage's protocol on loopback, for tests of paths in buckets.

It is gcp-storage-emulator, which keeps objects in memory, behind a front that does what the emulator leaves out: it
refuses what a generation precondition forbids, names the generation of what is read (tensorstore asks for it), keeps
the line's end that an object ends with, serves several requests at once, and is slow or fails when told to.
"""

import io
import json
import logging
import os
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer

import gcp_storage_emulator.server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

# It tells of every object that is not there.
logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
BUCKET = "bucket-a"
# Variables that send gcsfs, tensorstore and the storage libraries elsewhere.
VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")


_read_data = emulator._read_data


def _read_parts(handler: emulator.RequestHandler, query: dict[str, list[str]]) -> object:
    """The data of a request; the emulator takes a multipart upload for mail, and line ends with it."""
    kind = handler.headers.get("Content-Type") or ""
    boundary = re.search(r"boundary=[\"']?([^\"';]+)", kind)
    if not kind.startswith("multipart/related") or boundary is None:
        return _read_data(handler, query)
    mark = b"--" + boundary[1].encode()
    raw = emulator._decode_raw_data(emulator._read_raw_data(handler), handler)
    _, meta, rest = raw.split(mark, 2)
    (_, meta), (head, content) = (re.split(rb"\r?\n\r?\n", part, maxsplit=1) for part in (meta, rest))
    # gcsfs ends parts by \n, so a \r before it may be the content's.
    content = content[: content.rindex(mark)].removesuffix(b"\r\n" if raw.startswith(mark + b"\r\n") else b"\n")
    found = re.search(rb"(?i)content-type:\s*(\S+)", head)
    return {
        "meta": json.loads(meta),
        "content": content,
        "content-type": found[1].decode() if found else "application/octet-stream",
    }


emulator._read_data = _read_parts


class Server:
    """A running server.

    Attributes:
      url: its address.
      requests: (method, path) of every request so far.
      delay_s: time that each request waits before its answer.
      fault: called with (method, path) of each request; a status from it is the answer, and the request is done all
        the same where the status is negative: its answer was lost.
    """

    def __init__(self, bucket: str = BUCKET):
        self.storage = _Storage(use_memory_fs=True)
        buckets.create_bucket(bucket, self.storage)
        self.requests: list[tuple[str, str]] = []
        self.delay_s = 0.0
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self._lock = threading.RLock()
        self._http = _HTTPServer(("localhost", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self.url = f"http://localhost:{self._http.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """Variables with which a process finds this server in the place of Google's."""
        return dict.fromkeys(VARIABLES, self.url)

    def content(self, name: str, bucket: str = BUCKET) -> bytes:
        """The bytes of an object."""
        with self._lock:
            return self.storage.get_file(bucket, name)

    def replace(self, name: str, content: bytes, bucket: str = BUCKET) -> None:
        """Gives an object other bytes, and says nothing of it in its metadata."""
        with self._lock:
            found = self.storage.get_file_obj(bucket, name)
            self.storage.wanted = None
            self.storage.create_file(bucket, name, content, found)

    def add(self, name: str, content: bytes, bucket: str = BUCKET) -> None:
        """Makes an object; many are made in time that does not grow with their number squared."""
        found = objects._make_object_resource(self.url, bucket, name, "application/octet-stream", len(content))
        with self._lock:
            self.storage._store.write_bytes(self.storage._object_path(bucket, name), content)
            self.storage.objects.setdefault(bucket, {})[name] = found

    def remove(self, name: str, bucket: str = BUCKET) -> None:
        """Removes an object."""
        with self._lock:
            self.storage.wanted = None
            self.storage.delete_file(bucket, name)

    def names(self, bucket: str = BUCKET) -> list[str]:
        """The names of all objects, sorted."""
        with self._lock:
            return sorted(self.storage.objects.get(bucket, {}))

    def forget(self) -> None:
        """Removes all objects, and serves well and at once."""
        with self._lock:
            self.storage.wipe(keep_buckets=True)
        self.requests.clear()
        self.delay_s, self.fault = 0.0, lambda method, path: None

    def answer(self, handler: "_Handler", method: str) -> None:
        """Answers one request."""
        self.requests.append((method, handler.path))
        if self.delay_s:
            time.sleep(self.delay_s)
        status = self.fault(method, handler.path)
        answers = handler.wfile
        if status is None or status < 0:
            with self._lock:
                handler.wfile = answers if status is None else io.BytesIO()
                handler.generation = self._generation(handler.path) if method == "GET" else None
                query = urllib.parse.parse_qs(urllib.parse.urlparse(handler.path).query)
                self.storage.wanted = query.get("ifGenerationMatch", [None])[0]
                try:
                    emulator.Router(handler).handle(method)
                except _OtherGenerationError:
                    status = 412
            handler.wfile = answers
        if status is not None:
            handler.refuse(abs(status))

    def _generation(self, path: str) -> str | None:
        """Generation of the object that a path names, if there is one."""
        bucket, _, name = urllib.parse.urlparse(path).path.partition("/b/")[2].partition("/o/")
        try:
            return self.storage.get_file_obj(bucket, urllib.parse.unquote(name))["generation"]
        except NotFound:
            return None

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Ends serving."""
        self._http.shutdown()
        self._http.server_close()


class _OtherGenerationError(Exception):
    """An object is not of the generation that a request wants to change."""


class _Storage(Storage):
    """Objects in memory that change only if they are of the generation `wanted` by the request; "0": absent."""

    wanted: str | None = None

    def create_file(self, bucket: str, name: str, *arguments: object) -> None:
        self._check(bucket, name)
        super().create_file(bucket, name, *arguments)

    def create_resumable_upload(self, bucket: str, name: str, found: object) -> str:
        self._check(bucket, name)
        return super().create_resumable_upload(bucket, name, found)

    def delete_file(self, bucket: str, name: str) -> None:
        self._check(bucket, name)
        super().delete_file(bucket, name)

    def _check(self, bucket: str, name: str) -> None:
        try:
            generation = self.get_file_obj(bucket, name)["generation"]
        except NotFound:
            generation = "0"
        if self.wanted not in (None, generation):
            raise _OtherGenerationError


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Leaves clients that hang up unmentioned."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(emulator.RequestHandler):
    protocol_version = "HTTP/1.1"
    generation: str | None = None

    def __init__(self, server: Server, *args: object):
        self._server = server
        super().__init__(server.storage, *args)

    def do_GET(self) -> None:
        self._server.answer(self, "GET")

    def do_POST(self) -> None:
        self._server.answer(self, "POST")

    def do_PUT(self) -> None:
        self._server.answer(self, "PUT")

    def do_DELETE(self) -> None:
        self._server.answer(self, "DELETE")

    def do_PATCH(self) -> None:
        self._server.answer(self, "PATCH")

    def end_headers(self) -> None:
        if self.generation is not None:
            self.send_header("x-goog-generation", self.generation)
            self.generation = None
        super().end_headers()

    def refuse(self, status: int) -> None:
        """Answers with an error, without a look at the request's body."""
        content = json.dumps({"error": {"code": status, "message": f"told to answer {status}"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True


@contextmanager
def running() -> Iterator[Server]:
    """A server for as long as the block, which this process and its children take for Google's."""
    server = Server()
    server.start()
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(server.environment())
    try:
        yield server
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.stop()
