"""A server in a thread, its clients, and an engine that draws when it is let."""

import asyncio
import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.serving.engine import Engine
from imagen_jax.serving.server import ServerConfig, build, listen

PATH = "/v1/images/generations"


@contextmanager
def serving(cascade: Cascade, config: ServerConfig) -> Iterator[tuple[int, Engine]]:
    """Port and engine of a server in a thread."""
    engine, server = build(cascade, config)
    engine.start()
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1], engine
        finally:
            server.should_exit = True
            thread.join()
            engine.close()


def ask(port: int, body: object, headers: dict[str, str] | None = None, path: str = PATH) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, content, {"Content-Type": "application/json", **(headers or {})})
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def pixels(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def far(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


class Gated(Engine):
    """Draws when it is let."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gate, self.prompts = threading.Event(), []

    def _draw(self, jobs, size):
        if jobs[0].prompt:
            assert self.gate.wait(20)
        self.prompts += [job.prompt for job in jobs]
        if jobs[0].prompt == "fails":
            raise UserError("a stage drew\npictures that are no numbers")
        return [np.zeros((2, 2, 3), np.uint8) for _ in jobs]


def waits(engine: Engine, number: int) -> None:
    end = time.monotonic() + 10
    while engine.waiting != number:
        assert time.monotonic() < end
        time.sleep(0.005)
