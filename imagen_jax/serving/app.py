"""The web application: paths, answers, cancelled and late requests."""

import asyncio
import base64
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from imagen_jax.errors import printable
from imagen_jax.safety.guard import Guard
from imagen_jax.sampling.images import as_png
from imagen_jax.serving.engine import BusyError, ClosedError, Engine, Job
from imagen_jax.serving.openapi import openapi
from imagen_jax.serving.requests import Generation, Limits, RefusedError, parse_generation
from imagen_jax.typing import UInt8

# What the client of a closed connection is told, in logs alone.
_CANCELLED = 499
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_JSON = "application/json"
# OpenAI's clients know a refused prompt by it.
REFUSED_CODE = "content_policy_violation"


class Service:
    """The paths of one engine.

    Args:
      engine: draws; it has been started.
      limits: how much a request may ask for.
      size: height and width of its images.
      guard: judges and notes requests before they are drawn.
    """

    def __init__(self, engine: Engine, limits: Limits, size: tuple[int, int], guard: Guard):
        self._engine, self._limits, self._size, self._guard = engine, limits, size, guard
        self._document = openapi(limits, size)

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/images/generations", self._generations, methods=["POST"]),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._openapi),
            ]
        )

    async def _health(self, request: Request) -> Response:
        healthy = self._engine.alive
        content = {"status": "ok" if healthy else "ending", "waiting": self._engine.waiting}
        return JSONResponse(content, 200 if healthy else 503, _HEADERS)

    async def _metrics(self, request: Request) -> Response:
        return Response(self._engine.metrics.text(), media_type="text/plain; version=0.0.4", headers=_HEADERS)

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(self._document, headers=_HEADERS)

    async def _generations(self, request: Request) -> Response:
        try:
            body = await _body(request, self._limits.body)
            asked = parse_generation(body, self._limits, self._size)
            await asyncio.to_thread(self._admit, asked)
            if asked.stream:
                return self._streamed(asked)
            return await self._whole(request, asked)
        except ClientDisconnect:
            return self._ended(Response(status_code=_CANCELLED))
        except Exception as error:
            return self._ended(_problem(error, self._limits))

    def _admit(self, asked: Generation) -> None:
        match = self._guard.admit(asked.prompt, asked.seeds[0], len(asked.seeds))
        if match is not None:
            why = f"prompt is refused: it holds words of the category {match.category}"
            raise RefusedError(why, field="prompt", code=REFUSED_CODE)

    def _encoded(self, image: UInt8[np.ndarray, "h w 3"], prompt: str, seed: int) -> str:
        marked = self._guard.mark(image)
        info = {"prompt": prompt, "seed": seed, **self._guard.info()}
        return base64.b64encode(as_png(marked, info)).decode()

    def _ended(self, response: Response) -> Response:
        code = response.status_code
        self._engine.metrics.requests.labels("cancelled" if code == _CANCELLED else str(code)).inc()
        return response

    async def _whole(self, request: Request, asked: Generation) -> Response:
        """Answers when all images are drawn; gives up when the client goes, or after the time limit."""
        jobs = [Job(prompt=asked.prompt, seed=seed) for seed in asked.seeds]
        self._engine.submit(jobs)
        drawn = asyncio.gather(*(asyncio.wrap_future(job.drawn) for job in jobs))
        # Of one that is cancelled nobody asks the reason, which asyncio would then tell on stderr.
        drawn.add_done_callback(lambda done: done.cancelled() or done.exception())
        gone = asyncio.ensure_future(_gone(request))
        try:
            both: set[asyncio.Future[Any]] = {drawn, gone}
            done, _ = await asyncio.wait(both, timeout=self._limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise TimeoutError
            if drawn not in done:
                return self._ended(Response(status_code=_CANCELLED))
            pictures = [
                {"b64_json": await asyncio.to_thread(self._encoded, image, asked.prompt, job.seed), "seed": job.seed}
                for image, job in zip(drawn.result(), jobs, strict=True)
            ]
        finally:
            gone.cancel()
            _give_up(jobs)
            # What gather would tell of, nobody waits for any more.
            drawn.cancel()
        return self._ended(JSONResponse({"created": int(time.time()), "data": pictures}, headers=_HEADERS))

    def _streamed(self, asked: Generation) -> Response:
        """Answers at once, with an event for each stage's image."""
        loop = asyncio.get_running_loop()
        stages: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

        def on_stage(number: int, image: UInt8[np.ndarray, "h w 3"]) -> None:
            with contextlib.suppress(RuntimeError):  # The loop has ended before the drawing.
                loop.call_soon_threadsafe(stages.put_nowait, (number, image))

        job = Job(prompt=asked.prompt, seed=asked.seeds[0], on_stage=on_stage)
        self._engine.submit([job])
        return StreamingResponse(self._events(job, stages), headers=_HEADERS, media_type="text/event-stream")

    async def _events(self, job: Job, stages: "asyncio.Queue[tuple[int, Any]]") -> AsyncIterator[str]:
        outcome, last = "cancelled", len(self._engine.cascade.stages) - 1
        try:
            async with asyncio.timeout(self._limits.seconds):
                drawn = asyncio.wrap_future(job.drawn)
                number = -1
                while number < last:
                    next_stage = asyncio.ensure_future(stages.get())
                    await asyncio.wait({drawn, next_stage}, return_when=asyncio.FIRST_COMPLETED)
                    if drawn.done() and drawn.exception() is not None:
                        next_stage.cancel()
                        drawn.result()
                    number, image = await next_stage
                    if number < last:
                        picture = await asyncio.to_thread(self._encoded, image, job.prompt, job.seed)
                        yield _event("image_generation.partial_image", b64_json=picture, partial_image_index=number)
                picture = await asyncio.to_thread(self._encoded, await drawn, job.prompt, job.seed)
            outcome = "200"
            yield _event("image_generation.completed", b64_json=picture, seed=job.seed, created_at=int(time.time()))
        except Exception as error:
            response = _problem(error, self._limits)
            outcome = str(response.status_code)
            yield _event("error", **json.loads(bytes(response.body)))
        finally:
            _give_up([job])
            self._engine.metrics.requests.labels(outcome).inc()


def _give_up(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.drawn.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, most: int) -> bytes:
    """Reads a JSON body that a program, or this server's own page, sent.

    Raises:
      RefusedError: it is too long, of another type, or a foreign page's.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != _JSON:
        # A form of a foreign page cannot send this type unasked.
        raise RefusedError(f"a request is {_JSON}", 415)
    if urlsplit(request.headers.get("origin", "")).netloc not in ("", request.headers.get("host")):
        raise RefusedError("requests come from programs or from this server's own page", 403)
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > most:
            raise RefusedError(f"a request has at most {most} bytes", 413)
        parts.append(part)
    return b"".join(parts)


def _event(name: str, **content: Any) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **content})}\n\n"


def _problem(error: Exception, limits: Limits) -> Response:
    """Puts a failure as OpenAI's clients read it: {"error": {"message", "type", "param", "code"}}."""
    headers = dict(_HEADERS)
    field = code = None
    match error:
        case RefusedError():
            status, message, field, code = error.status, str(error), error.field, error.code
        case BusyError():
            status, message = 429, "too many images wait; come again later"
            headers["Retry-After"] = "1"
        case ClosedError():
            status, message = 503, "the server is ending"
        case TimeoutError():
            status, message = 504, f"nothing was drawn within {limits.seconds:g} seconds"
        case _:
            print(f"a request failed: {printable(repr(error))}", file=sys.stderr, flush=True)
            status, message = 500, "drawing failed; the server's log has the reason"
    kind = "invalid_request_error" if status < 500 else "server_error"
    content = {"error": {"message": message, "type": kind, "param": field, "code": code}}
    return JSONResponse(content, status, headers)
