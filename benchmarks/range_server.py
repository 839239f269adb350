"""A fast server of the part of Google Cloud Storage's protocol that reading takes, for benchmarks of readers.

It serves the files of a folder as the objects of one bucket: lists, metadata and bytes, whole or a range. Each of its
processes answers on one port, by an event loop of C, from files that are mapped into memory; nothing is copied but what
is sent. tests/gcs.py, which can write as well, answers a tenth as many requests.
"""

import asyncio
import json
import mmap
import multiprocessing
import re
import socket
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
_RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d*)", re.IGNORECASE)
_GENERATION = b"1"
_FOUND = b"HTTP/1.1 200 OK\r\ncontent-type: application/json"


class _Answers(asyncio.Protocol):
    """One connection.

    Args:
      objects: bytes of each object by name.
      bucket: its name.
      delay_s: time between a request and its answer.
    """

    def __init__(self, objects: dict[str, bytes | mmap.mmap], bucket: str, delay_s: float):
        self._objects, self._bucket, self._delay_s = objects, bucket, delay_s
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        self._transport: Any = transport  # uvloop's own kind.

    def data_received(self, data: bytes) -> None:
        """Answers the requests that are whole."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            first, content = self._answer(head)
            header = b"%s\r\ncontent-length: %d\r\nx-goog-generation: %s\r\n\r\n" % (first, len(content), _GENERATION)
            if self._delay_s:
                asyncio.get_running_loop().call_later(self._delay_s, self._transport.writelines, (header, content))
            else:
                self._transport.writelines((header, content))

    def _answer(self, head: bytes) -> tuple[bytes, bytes | memoryview]:
        """The first lines of the answer to a request, and its content."""
        url = urllib.parse.urlsplit(head.split(b" ", 2)[1].decode())
        query = urllib.parse.parse_qs(url.query)
        place = url.path.partition(f"/b/{self._bucket}")[2]
        if place in ("/o", "/o/"):
            return _FOUND, self._listed(query)
        name = urllib.parse.unquote(place.removeprefix("/o/"))
        if name not in self._objects:
            return b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json", b"{}"
        content = self._objects[name]
        if query.get("alt") != ["media"]:
            return _FOUND, json.dumps(self._entry(name)).encode()
        wanted = _RANGE.search(head)
        if wanted is None:
            return _FOUND, memoryview(content)
        end = int(wanted[2]) + 1 if wanted[2] else len(content)
        start, end = int(wanted[1]), min(end, len(content))
        first = b"HTTP/1.1 206 Partial Content\r\ncontent-range: bytes %d-%d/%d" % (start, end - 1, len(content))
        return first, memoryview(content)[start:end]

    def _entry(self, name: str) -> dict[str, str]:
        size, generation = str(len(self._objects[name])), _GENERATION.decode()
        return {"kind": "storage#object", "name": name, "bucket": self._bucket, "size": size, "generation": generation}

    def _listed(self, query: dict[str, list[str]]) -> bytes:
        (prefix,), delimiter = query.get("prefix", [""]), query.get("delimiter", [""])[0]
        names = [name for name in self._objects if name.startswith(prefix)]
        deep = {name for name in names if delimiter and delimiter in name[len(prefix) :]}
        folders = sorted({prefix + name[len(prefix) :].partition(delimiter)[0] + delimiter for name in deep})
        items = [self._entry(name) for name in sorted({*names} - deep)]
        return json.dumps({"kind": "storage#objects", "items": items, "prefixes": folders}).encode()


def _mapped(path: Path) -> bytes | mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def _serve(listener: socket.socket, folder: str, bucket: str, delay_s: float) -> None:
    objects = {path.relative_to(folder).as_posix(): _mapped(path) for path in Path(folder).rglob("*") if path.is_file()}

    async def forever() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Answers(objects, bucket, delay_s), sock=listener)
        await server.serve_forever()

    uvloop.run(forever())


@contextmanager
def serving(folder: str, bucket: str, delay_s: float, num_processes: int = 1) -> Iterator[dict[str, str]]:
    """Serves a folder; gives the variables with which a process finds the server in the place of Google's.

    Args:
      folder: its files are the objects, by their paths in it.
      bucket: name of the bucket.
      delay_s: time between a request and its answer.
      num_processes: that answer.
    """
    context = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        processes = [
            context.Process(target=_serve, args=(listener, folder, bucket, delay_s), daemon=True)
            for _ in range(num_processes)
        ]
        for process in processes:
            process.start()
        try:
            yield dict.fromkeys(VARIABLES, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            for process in processes:
                process.terminate()
                process.join()
