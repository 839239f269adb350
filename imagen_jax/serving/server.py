"""The server of a trained cascade, by uvicorn."""

import dataclasses
import socket

import uvicorn

from imagen_jax.errors import UserError
from imagen_jax.safety.guard import Guard, markable
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.serving.app import Service
from imagen_jax.serving.engine import Engine
from imagen_jax.serving.metrics import Metrics
from imagen_jax.serving.requests import Limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where and how much is served.

    Args:
      host: address to listen on; other machines reach only another than the default.
      port: 0 takes a free one.
      batch_sizes: images drawn at a time; each is compiled at the start.
      queue_limit: images that may wait; more are refused with status 429.
      steps: numbers of steps that a request may ask for, besides the cascade's own; each is compiled too.
      limits: of one request.
      guard: judges and notes requests, and marks images; the default does nothing.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    batch_sizes: tuple[int, ...] = (1, 4, 16)
    queue_limit: int = 64
    steps: tuple[int, ...] = ()
    limits: Limits = dataclasses.field(default_factory=Limits)
    guard: Guard = dataclasses.field(default_factory=Guard)


def build(cascade: Cascade, config: ServerConfig) -> tuple[Engine, uvicorn.Server]:
    """An engine, not yet started, and its server.

    Raises:
      UserError: the cascade draws from images alone, or a setting is wrong.
    """
    if cascade.stages[0].stage.low_res_size is not None:
        raise UserError(f"the first stage ({cascade.names[0]!r}) enlarges images; serve a cascade with a base stage")
    engine = Engine(cascade, config.batch_sizes, config.queue_limit, Metrics(), config.steps)
    app = Service(engine, config.limits, config.guard).app()
    # Answers under way are finished after SIGTERM, as long as any of them may take.
    patience = int(config.limits.seconds) + 1
    settings = uvicorn.Config(
        app, log_level="warning", loop="asyncio", http="h11", ws="none", timeout_graceful_shutdown=patience
    )
    return engine, uvicorn.Server(settings)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      UserError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host={host} --port={port} cannot be had ({error}); choose another port") from error
    return found


def serve(cascade: Cascade, config: ServerConfig) -> None:
    """Serves until Ctrl-C or SIGTERM; what was begun is then finished.

    Raises:
      UserError: see `build` and `listen`.
    """
    engine, server = build(cascade, config)
    with listen(config.host, config.port) as listening:
        size = engine.image_size
        if config.guard.watermark is not None and not markable(size):
            print(f"images of {size[1]}x{size[0]} are too small for the watermark and get none", flush=True)
        print(f"compiling for batches of {', '.join(map(str, engine.batch_sizes))}", flush=True)
        engine.start()
        port = listening.getsockname()[1]
        print(f"http://{config.host}:{port}/v1/images/generations draws; /openapi.json describes it", flush=True)
        try:
            server.run(sockets=[listening])
        finally:
            engine.close()
