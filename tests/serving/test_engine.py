"""The engine alone: its queue, failures, its end."""

import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from imagen_jax.errors import UserError
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.serving.engine import BusyError, ClosedError, Job
from imagen_jax.serving.metrics import Metrics
from tests.serving.parts import Gated, waits
from tests.untrained import untrained_cascade


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return untrained_cascade()


@pytest.fixture
def gated(cascade) -> Iterator[Gated]:
    engine = Gated(cascade, (1, 2), 3, Metrics())
    engine.start()
    yield engine
    engine.gate.set()
    engine.close()


def test_a_full_queue_refuses_and_cancelled_images_make_room(gated):
    begun = Job(prompt="begun", seed=0)
    gated.submit([begun])
    waits(gated, 0)
    waiting = [Job(prompt=f"{i}", seed=0) for i in range(3)]
    gated.submit(waiting)
    with pytest.raises(BusyError):
        gated.submit([Job(prompt="too many", seed=0)])
    assert waiting[1].drawn.cancel()
    more = Job(prompt="more", seed=0)
    gated.submit([more])
    gated.gate.set()
    assert more.drawn.result(10) is not None
    assert gated.prompts == ["", "", "", "begun", "0", "2", "more"]


def test_a_failed_batch_is_told_and_the_next_is_drawn(gated, capfd):
    gated.gate.set()
    bad, good = Job(prompt="fails", seed=0), Job(prompt="good", seed=0)
    gated.submit([bad])
    with pytest.raises(UserError):
        bad.drawn.result(10)
    gated.submit([good])
    assert good.drawn.result(10) is not None
    assert "a batch of 1 images failed: a stage drew; pictures" in capfd.readouterr().err


def test_a_closing_engine_draws_what_waits_and_takes_no_more(gated):
    jobs = [Job(prompt="a", seed=i) for i in range(3)]
    gated.submit(jobs)
    threading.Timer(0.05, gated.gate.set).start()
    gated.close()
    assert all(job.drawn.done() for job in jobs) and not gated.alive
    with pytest.raises(ClosedError):
        gated.submit([Job(prompt="b", seed=0)])
