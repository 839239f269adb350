"""The engine: images that wait in a queue are drawn in batches of a few fixed sizes, so that nothing compiles twice."""

import collections
import concurrent.futures
import dataclasses
import functools
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imagen_jax.errors import UserError, printable
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.drawing import prepare
from imagen_jax.sampling.images import from_uint8
from imagen_jax.sampling.loading import stage_sizes
from imagen_jax.sampling.request import Request
from imagen_jax.serving.metrics import Metrics
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.typing import Bool, UInt8

Image = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]
OnStage = Callable[[int, Image], None]


class BusyError(Exception):
    """Raised where the queue has no room."""


class ClosedError(Exception):
    """Raised where the engine takes no more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sampling settings that a request may choose; None: the cascade's own.

    Args:
      num_steps: of every stage; one that the engine has compiled.
      guidance_weight: of every stage that is guided; above 1, so that the program stays the same.
    """

    num_steps: int | None = None
    guidance_weight: float | None = None

    def configure(self, cascade: Cascade) -> Cascade:
        """A cascade that draws so."""
        changes: dict[str, Any] = {} if self.num_steps is None else {"num_steps": self.num_steps}

        def change(_: Any, sampling: SamplingConfig) -> SamplingConfig:
            guided = self.guidance_weight is not None and is_guided(sampling)
            more: dict[str, Any] = {"guidance_weight": self.guidance_weight} if guided else {}
            return dataclasses.replace(sampling, **changes, **more)

        return cascade if self == Settings() else cascade.configure(change)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One image to draw.

    Args:
      prompt: the caption.
      seed: of its noise.
      settings: how; jobs of one batch share them.
      edit: an image of the cascade's size, and True where it is drawn anew; None: all is drawn.
      on_stage: called in the engine's thread with the number and the image of each stage; None: nobody asks.
      drawn: the last stage's image. Who cancels it before it is begun is not drawn for.
      since: `time.monotonic()` of its coming.
    """

    prompt: str
    seed: int
    settings: Settings = Settings()
    edit: tuple[Image, Mask] | None = None
    on_stage: OnStage | None = None
    drawn: "concurrent.futures.Future[Any]" = dataclasses.field(default_factory=concurrent.futures.Future)
    since: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def kind(self) -> tuple[Settings, bool]:
        """Equal for jobs that one program draws with one table of steps."""
        return self.settings, self.edit is not None


class Engine:
    """A thread that draws what waits.

    An image depends on what its job says: bit for bit among batches of one size, whatever else is in them, and
    up to the rounding of another compiled program among sizes.

    Args:
      cascade: draws.
      batch_sizes: images drawn at a time; a batch is the smallest that holds all that wait, or the largest. Edits are
        drawn in batches of the smallest.
      queue_limit: images that may wait.
      metrics: what is counted.
      steps: numbers of steps that requests may ask for, besides the cascade's own.

    Raises:
      UserError: a size or the limit is no positive count, or a stage cannot take so many steps.
    """

    def __init__(
        self,
        cascade: Cascade,
        batch_sizes: Sequence[int],
        queue_limit: int,
        metrics: Metrics,
        steps: Sequence[int] = (),
    ):
        if not batch_sizes or min(batch_sizes) < 1:
            raise UserError(f"batch_sizes {tuple(batch_sizes)} must be positive numbers of images, e.g. 1,4,16")
        if queue_limit < 1:
            raise UserError(f"queue_limit ({queue_limit}) must be a positive number of images")
        self.cascade, self.batch_sizes, self.queue_limit = cascade, sorted(set(batch_sizes)), queue_limit
        self.metrics, self.steps = metrics, tuple(sorted(set(steps)))
        self._cascades = functools.lru_cache(maxsize=64)(lambda settings: settings.configure(cascade))
        for number in self.steps:
            prepare(self._cascades(Settings(num_steps=number)).stages, Request(prompts=[""]))
        self._waiting: collections.deque[Job] = collections.deque()
        self._change = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Compiles every batch size and number of steps, then begins to draw."""
        height, width = self.image_size
        edit = np.full((height, width, 3), 127, np.uint8), np.arange(height * width).reshape(height, width) > 0
        for number in (None, *self.steps):
            settings = Settings(num_steps=number)
            for size in self.batch_sizes:
                self._draw([Job(prompt="", seed=0, settings=settings)], size)
            self._draw([Job(prompt="", seed=0, settings=settings, edit=edit)], self.batch_sizes[0])
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Puts jobs into the queue, all or none.

        Raises:
          BusyError: there is no room for all of them.
          ClosedError: the engine is being closed.
        """
        with self._change:
            if not self._open:
                raise ClosedError
            if len(self._waiting) + len(jobs) > self.queue_limit:
                # Those whom nobody waits for take no room.
                alive = [job for job in self._waiting if not job.drawn.cancelled()]
                self._waiting = collections.deque(alive)
            if len(self._waiting) + len(jobs) > self.queue_limit:
                raise BusyError
            self._waiting.extend(jobs)
            self.metrics.waiting.set(len(self._waiting))
            self._change.notify()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of what is drawn."""
        return stage_sizes([one.stage for one in self.cascade.stages], None)[-1]

    @property
    def guided(self) -> bool:
        """Tells if a request's guidance weight changes anything."""
        return any(is_guided(one.sampling) for one in self.cascade.stages)

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Tells if it draws."""
        return self._thread.is_alive() and self._open

    def close(self) -> None:
        """Draws what waits, and ends."""
        with self._change:
            self._open = False
            self._change.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while jobs := self._next():
            size = min(size for size in self.batch_sizes if size >= len(jobs))
            try:
                images = self._draw(jobs, size)
            except Exception as error:
                # One batch is lost, not the server.
                print(f"a batch of {len(jobs)} images failed: {printable(str(error))}", file=sys.stderr, flush=True)
                for job in jobs:
                    job.drawn.set_exception(error)
                continue
            for job, image in zip(jobs, images, strict=True):
                job.drawn.set_result(image)

    def _next(self) -> list[Job]:
        """Jobs of one batch; none when the engine is closed and nothing waits."""
        jobs: list[Job] = []
        with self._change:
            while not jobs:
                self._change.wait_for(lambda: self._waiting or not self._open)
                if not self._waiting:
                    return []
                jobs = self._take()
                self.metrics.waiting.set(len(self._waiting))
        return jobs

    def _take(self) -> list[Job]:
        """The first that waits, and those behind it that are drawn by the same program."""
        jobs: list[Job] = []
        others: list[Job] = []
        most = self.batch_sizes[-1]
        while self._waiting and len(jobs) < most:
            job = self._waiting.popleft()
            if jobs and job.kind != jobs[0].kind:
                others.append(job)
            elif job.drawn.set_running_or_notify_cancel():
                jobs.append(job)
                most = self.batch_sizes[0 if job.edit is not None else -1]
        self._waiting.extendleft(reversed(others))
        return jobs

    def _draw(self, jobs: Sequence[Job], size: int) -> list[Image]:
        def on_stage(number: int, images: UInt8[np.ndarray, "b h w 3"]) -> None:
            for job, image in zip(jobs, images, strict=False):
                if job.on_stage is not None:
                    job.on_stage(number, image)

        begun = time.monotonic()
        cascade = self._cascades(jobs[0].settings)
        asked: dict[str, Any] = {"seed": [job.seed for job in jobs]}
        edits = [job.edit for job in jobs if job.edit is not None]
        images = None
        if edits:
            images = from_uint8(np.stack([image for image, _ in edits]))
            asked["masks"] = np.stack([mask for _, mask in edits])
        cascade, request = cascade.job("inpaint" if edits else "text", [job.prompt for job in jobs], images, **asked)
        # What people ask for stands in the audit log, if anywhere.
        (found,) = cascade.stream(request, batch_size=size, label="", fill=True, on_stage=on_stage, tell=False)
        self.metrics.batch_images.observe(len(jobs))
        self.metrics.draw_seconds.observe(time.monotonic() - begun)
        for job in jobs:
            self.metrics.queue_seconds.observe(begun - job.since)
        return list(found[1][-1])


def is_guided(sampling: SamplingConfig) -> bool:
    """Tells if a stage's estimates are guided."""
    return sampling.guidance_weight > 1


def any_seed() -> int:
    """A seed for who gives none."""
    return random.SystemRandom().randrange(2**32)
