"""Figures of a server in Prometheus' text format."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one server, apart from those of other servers in the process.

    Attributes:
      requests: by the outcome: the status code, or "cancelled".
      waiting: images in the queue.
      batch_images: images of each batch, without those that fill it up.
      draw_seconds: time of each batch.
      queue_seconds: time that each image waited.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self._registry, "namespace": "imagen_jax"}
        self.requests = Counter("requests", "requests for images, by outcome", ["outcome"], **common)
        self.waiting = Gauge("queue_images", "images that wait", **common)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128)
        self.batch_images = Histogram("batch_images", "images asked for in a batch", buckets=sizes, **common)
        self.draw_seconds = Histogram("draw_seconds", "time of a batch", buckets=_SECONDS, **common)
        self.queue_seconds = Histogram("queue_seconds", "time that an image waited", buckets=_SECONDS, **common)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
