"""The web application: paths, answers, cancelled and late requests."""

import asyncio
import base64
import contextlib
import json
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from imagen_jax.errors import printable
from imagen_jax.safety.guard import Guard
from imagen_jax.sampling.images import as_png
from imagen_jax.serving.engine import BusyError, ClosedError, Engine, Job, OnStage
from imagen_jax.serving.openapi import openapi
from imagen_jax.serving.requests import Asked, Limits, Offer, RefusedError, parse_edit, parse_generation
from imagen_jax.typing import UInt8

# What the client of a closed connection is told, in logs alone.
_CANCELLED = 499
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_JSON, _FORM = "application/json", "multipart/form-data"
# OpenAI's clients know a refused prompt by it.
REFUSED_CODE = "content_policy_violation"


class Service:
    """The paths of one engine.

    Args:
      engine: draws; it has been started.
      limits: how much a request may ask for.
      guard: judges and notes requests before they are drawn, and images.
    """

    def __init__(self, engine: Engine, limits: Limits, guard: Guard):
        self._engine, self._limits, self._guard = engine, limits, guard
        self._offer = Offer.of(engine)
        self._document = openapi(limits, self._offer)

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/images/generations", self._generations, methods=["POST"]),
                Route("/v1/images/edits", self._edits, methods=["POST"]),
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
        async def read() -> Asked:
            body = await _body(request, _JSON, self._limits.body)
            return parse_generation(body, self._limits, self._offer)

        return await self._answered(request, read)

    async def _edits(self, request: Request) -> Response:
        async def read() -> Asked:
            form = await _form(request, await _body(request, _FORM, self._limits.upload))
            return await asyncio.to_thread(parse_edit, form, self._limits, self._offer)

        return await self._answered(request, read)

    async def _answered(self, request: Request, read: Callable[[], Awaitable[Asked]]) -> Response:
        try:
            asked = await read()
            await asyncio.to_thread(self._admit, asked)
            if asked.stream:
                return self._streamed(asked)
            return await self._whole(request, asked)
        except ClientDisconnect:
            return self._ended(Response(status_code=_CANCELLED))
        except Exception as error:
            return self._ended(_problem(error, self._limits))

    def _admit(self, asked: Asked) -> None:
        match = self._guard.admit(asked.prompt, asked.seeds[0], len(asked.seeds))
        if match is not None:
            why = f"prompt is refused: it holds words of the category {match.category}"
            raise RefusedError(why, field="prompt", code=REFUSED_CODE)
        if asked.edit is not None:
            self._screen(asked.edit[0], asked.prompt, None)

    def _screen(self, image: UInt8[np.ndarray, "h w 3"], prompt: str, seed: int | None) -> None:
        finding = self._guard.screen(image, prompt, seed)
        if finding is not None:
            which = "the image to edit" if seed is None else f"the image of seed {seed}"
            raise RefusedError(f"{which} is refused: it shows {finding.category}", field="image", code=REFUSED_CODE)

    def _encoded(self, image: UInt8[np.ndarray, "h w 3"], job: Job) -> str:
        self._screen(image, job.prompt, job.seed)
        edited = job.edit is not None
        info = {"prompt": job.prompt, "seed": job.seed, **self._guard.info(edited)}
        return base64.b64encode(self._guard.sign(as_png(self._guard.mark(image), info), edited)).decode()

    def _ended(self, response: Response) -> Response:
        code = response.status_code
        self._engine.metrics.requests.labels("cancelled" if code == _CANCELLED else str(code)).inc()
        return response

    async def _whole(self, request: Request, asked: Asked) -> Response:
        """Answers when all images are drawn; gives up when the client goes, or after the time limit."""
        jobs = [_job(asked, seed) for seed in asked.seeds]
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
                {"b64_json": await asyncio.to_thread(self._encoded, image, job), "seed": job.seed}
                for image, job in zip(drawn.result(), jobs, strict=True)
            ]
        finally:
            gone.cancel()
            _give_up(jobs)
            # What gather would tell of, nobody waits for any more.
            drawn.cancel()
        return self._ended(JSONResponse({"created": int(time.time()), "data": pictures}, headers=_HEADERS))

    def _streamed(self, asked: Asked) -> Response:
        """Answers at once, with an event for each stage's image."""
        loop = asyncio.get_running_loop()
        stages: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

        def on_stage(number: int, image: UInt8[np.ndarray, "h w 3"]) -> None:
            with contextlib.suppress(RuntimeError):  # The loop has ended before the drawing.
                loop.call_soon_threadsafe(stages.put_nowait, (number, image))

        job = _job(asked, asked.seeds[0], on_stage)
        self._engine.submit([job])
        return StreamingResponse(
            self._events(job, stages, asked.partial_images), headers=_HEADERS, media_type="text/event-stream"
        )

    async def _events(
        self, job: Job, stages: "asyncio.Queue[tuple[int, Any]]", partial: int | None
    ) -> AsyncIterator[str]:
        outcome, last = "cancelled", len(self._engine.cascade.stages) - 1
        kind = "image_generation" if job.edit is None else "image_edit"
        shown = last if partial is None else partial
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
                    if last - shown <= number < last:
                        picture = await asyncio.to_thread(self._encoded, image, job)
                        index = number - max(last - shown, 0)
                        yield _event(f"{kind}.partial_image", b64_json=picture, partial_image_index=index)
                picture = await asyncio.to_thread(self._encoded, await drawn, job)
            outcome = "200"
            yield _event(f"{kind}.completed", b64_json=picture, seed=job.seed, created_at=int(time.time()))
        except Exception as error:
            response = _problem(error, self._limits)
            outcome = str(response.status_code)
            yield _event("error", **json.loads(bytes(response.body)))
        finally:
            _give_up([job])
            self._engine.metrics.requests.labels(outcome).inc()


def _job(asked: Asked, seed: int, on_stage: OnStage | None = None) -> Job:
    return Job(prompt=asked.prompt, seed=seed, settings=asked.settings, edit=asked.edit, on_stage=on_stage)


def _give_up(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.drawn.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, kind: str, most: int) -> bytes:
    """Reads a body that a program, or a page of this server, sent.

    Raises:
      RefusedError: it is too long, of another type, or a foreign page's.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != kind:
        raise RefusedError(f"a request is {kind}", 415)
    # A form of a foreign page can send some types unasked; browsers then say whose it is.
    if urlsplit(request.headers.get("origin", "")).netloc not in ("", request.headers.get("host")):
        raise RefusedError("requests come from programs or from this server's own page", 403)
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > most:
            raise RefusedError(f"a request has at most {most} bytes", 413)
        parts.append(part)
    return b"".join(parts)


async def _form(request: Request, body: bytes) -> dict[str, str | bytes]:
    """Fields of a form; files as bytes.

    Raises:
      RefusedError: it is none, or has a field twice.
    """

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, once(), max_files=2, max_fields=20).parse()
    except (MultiPartException, ValueError) as error:
        raise RefusedError(f"the body is no form: {str(error)[:100]}") from error
    found: dict[str, str | bytes] = {}
    for name, value in form.multi_items():
        # OpenAI's clients write so what may be a list.
        name = "image" if name == "image[]" else name
        if name in found:
            raise RefusedError(f"{ascii(name)[:40]} is there twice", field=ascii(name)[1:40])
        found[name] = value if isinstance(value, str) else await value.read()
    await form.close()
    return found


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
