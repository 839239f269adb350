"""The server of a study for several raters at once, from the standard library."""

import json
import os
import socket
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from imagen_jax.errors import UserError
from imagen_jax.files import StrPath, alone_in, is_remote
from imagen_jax.ratings.log import RatingsLog, RepeatedError
from imagen_jax.ratings.page import policy, rating_page
from imagen_jax.ratings.study import IMAGES, RATINGS_FILE, SITE, Study, rater_name, read_study

LONGEST_BODY = 4096
_LOCK = ".serving.lock"
_SILENCE_S = 60
# After a refusal that ends a connection: how long a sender may be silent, and bytes taken at a time.
_LINGER_S, _PIECE = 1.0, 4096
_HTML, _JSON, _PNG = "text/html; charset=utf-8", "application/json", "image/png"


class RatingServer(ThreadingHTTPServer):
    """A thread a connection.

    Args:
      address: host and port; port 0 takes a free one.
      study: what is served.
      folder: of the study.
      log: where ratings go.
    """

    daemon_threads = True
    # Raters that come at once wait for a thread here.
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], study: Study, folder: StrPath, log: RatingsLog):
        self.log = log
        self.page, self.policy = rating_page(study).encode(), policy() + "; frame-ancestors 'none'"
        # Requests are looked up here: no path is made of what they say.
        self.images = {
            f"/{IMAGES}/{name}": os.path.join(folder, SITE, IMAGES, name)
            for item in study.items
            for names in item.sets
            for name in names
        }
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says in one line that a connection broke."""
        print(f"a connection of {client_address[0]} ended: {sys.exc_info()[1]!r}", file=sys.stderr, flush=True)


class _Handler(BaseHTTPRequestHandler):
    server: RatingServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "imagen_jax", ""
    timeout = _SILENCE_S
    # Head and body in one packet: in two, the second waits 40 ms for the other side to acknowledge the first.
    wbufsize = -1

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path in ("/", "/index.html"):
            self._send(200, self.server.page, _HTML)
        elif url.path == "/session":
            self._answer(lambda: self._session(url.query))
        elif url.path in self.server.images:
            self._send_image(self.server.images[url.path])
        else:
            self._refuse(404, "there is no such page; open /")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._refuse(411, "a rating needs Content-Length", last=True)
        elif len(length) > 9 or int(length) > LONGEST_BODY:
            self._refuse(413, f"a rating has at most {LONGEST_BODY} bytes", last=True)
        else:
            body = self.rfile.read(int(length))
            if self.path != "/ratings":
                self._refuse(404, "ratings go to /ratings")
            elif self.headers.get_content_type() != _JSON:
                # A form of a foreign page cannot send this type unasked.
                self._refuse(415, f"a rating is {_JSON}")
            elif urlsplit(self.headers.get("Origin", "")).netloc not in ("", self.headers.get("Host")):
                self._refuse(403, "ratings come from this server's own page")
            else:
                self._answer(lambda: {"new": self.server.log.append(body)})

    def _session(self, query: str) -> dict[str, Any]:
        rater = rater_name(parse_qs(query).get("rater", [""])[0])
        fields = ("item", "question", "answer", "left")
        return {
            "ratings": [{one: getattr(rating, one) for one in fields} for rating in self.server.log.of_rater(rater)]
        }

    def _answer(self, work: Callable[[], dict[str, Any]]) -> None:
        try:
            found = work()
        except RepeatedError as error:
            self._refuse(409, str(error))
        except UserError as error:
            self._refuse(400, str(error))
        except OSError as error:
            print(f"a rating cannot be written: {error}; free space", file=sys.stderr, flush=True)
            self._refuse(507, "the server's disk takes no more ratings; tell who runs the study")
        else:
            self._send(200, json.dumps(found).encode(), _JSON)

    def _send_image(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            print(f"an image is missing: {error}", file=sys.stderr, flush=True)
            self._refuse(404, "the image is missing; tell who runs the study")
            return
        self._send(200, content, _PNG, cache="private, max-age=86400")

    def _refuse(self, code: int, problem: str, last: bool = False) -> None:
        self.close_connection = self.close_connection or last
        self._send(code, json.dumps({"error": problem}).encode(), _JSON)
        if last:
            self._let_finish()

    def _let_finish(self) -> None:
        """Takes what is still being sent, a while and no more than a rating's bytes: closed at once, the connection
        would break under the sender before the answer is read."""
        self.wfile.flush()
        self.connection.settimeout(_LINGER_S)
        try:
            self.connection.shutdown(socket.SHUT_WR)
            for _ in range(LONGEST_BODY // _PIECE + 1):
                if not self.connection.recv(_PIECE):
                    return
        except OSError:
            return  # It was silent for that long, or broke the connection itself.

    def _send(self, code: int, content: bytes, kind: str, cache: str = "no-store") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", cache)
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing a request."""


def serve(folder: StrPath, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves a study until Ctrl-C or SIGTERM.

    Args:
      folder: of the study, on this machine.
      host: address to listen on; other machines reach only another than the default.
      port: 0 takes a free one.

    Raises:
      UserError: there is no study, another process serves it, a rating in it is damaged, or the port cannot be had.
    """
    if is_remote(folder):
        raise UserError(
            f"--study={os.fspath(folder)} lies in a bucket, where nothing can be appended safely; copy the folder here"
        )
    study = read_study(folder)
    with (
        alone_in(folder, _LOCK, f"--study={os.fspath(folder)}", "served"),
        RatingsLog(study, os.path.join(folder, RATINGS_FILE)) as log,
    ):
        if log.repaired:
            print(f"the last line of {RATINGS_FILE} was half written and is cut off ({log.repaired} bytes)")
        try:
            server = RatingServer((host, port), study, folder, log)
        except (OSError, OverflowError) as error:
            raise UserError(f"--host={host} --port={port} cannot be had ({error}); choose another port") from error
        with server:
            address = f"http://{host}:{server.server_address[1]}/"
            print(f"{address} serves {len(study.items)} pairs; {len(log)} ratings are there", flush=True)
            server.serve_forever(poll_interval=0.2)
