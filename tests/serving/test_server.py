"""The server: images of a seed whatever they are batched with, refusals, streams, limits, cancelled requests."""

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from imagen_jax.errors import UserError
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.serving.engine import Engine, Job
from imagen_jax.serving.metrics import Metrics
from imagen_jax.serving.requests import Limits, Offer, RefusedError, parse_generation
from imagen_jax.serving.server import ServerConfig, build, listen
from tests.serving.parts import PATH, Gated, ask, far, get, pixels, serving, waits
from tests.untrained import untrained_cascade


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return untrained_cascade()


@pytest.fixture(scope="module")
def served(cascade) -> Iterator[tuple[int, Engine]]:
    config = ServerConfig(
        batch_sizes=(1, 3), queue_limit=6, limits=Limits(body=2000, prompt=50, images=4, seconds=20.0)
    )
    with serving(cascade, config) as found:
        yield found


def test_an_image_is_that_of_its_seed_whatever_it_is_batched_with(served, cascade):
    """Bit for bit among batches of one size, within 1/255 of a batch of another."""
    port, engine = served
    status, body = ask(port, {"prompt": "a b", "n": 3, "seed": 7, "size": "16x16", "response_format": "b64_json"})
    assert status == 200
    data = json.loads(body)["data"]
    assert [one["seed"] for one in data] == [7, 8, 9]
    jobs = [Job(prompt=prompt, seed=seed) for prompt, seed in (("c", 1), ("a b", 8), ("", 2**32 - 1))]
    engine.submit(jobs)
    among = [job.drawn.result(30) for job in jobs]
    assert np.array_equal(among[1], pixels(data[1]["b64_json"])) and among[1].std() > 0
    (alone,) = json.loads(ask(port, {"prompt": "a b", "seed": 8})[1])["data"]
    assert far(pixels(alone["b64_json"]), among[1]) <= 1
    assert far(cascade.sample(["a b"], seed=[8], label="")[-1][0], among[1]) <= 1
    assert far(among[0], among[1]) > 1
    text = Image.open(io.BytesIO(base64.b64decode(alone["b64_json"]))).text
    assert text == {"prompt": "a b", "seed": "8"}


def test_a_stream_shows_every_stage(served):
    port, _ = served
    status, body = ask(port, {"prompt": "a", "seed": 3, "stream": True})
    events = [part.split("\ndata: ") for part in body.decode().strip().split("\n\n")]
    assert status == 200
    assert [name for name, _ in events] == [
        "event: image_generation.partial_image",
        "event: image_generation.completed",
    ]
    first, last = (json.loads(data) for _, data in events)
    assert pixels(first["b64_json"]).shape == (8, 8, 3) and first["partial_image_index"] == 0
    (whole,) = json.loads(ask(port, {"prompt": "a", "seed": 3})[1])["data"]
    assert last["b64_json"] == whole["b64_json"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "no JSON"),
        (b"\xff", 400, "no JSON"),
        (b"[" * 1900, 400, "no JSON"),
        ([], 400, "must be a JSON object"),
        ({}, 400, "prompt must be"),
        ({"prompt": " "}, 400, "prompt must be"),
        ({"prompt": ["a"]}, 400, "prompt must be"),
        ({"prompt": "a" * 51}, 400, "51 characters; at most 50"),
        (b'{"prompt": "\\ud800"}', 400, "half a character"),
        ({"prompt": "a" * 3000}, 413, "at most 2000 bytes"),
        ({"prompt": "a", "n": 5}, 400, "from 1 to 4"),
        ({"prompt": "a", "n": True}, 400, "from 1 to 4"),
        ({"prompt": "a", "n": "1\n2"}, 400, "from 1 to 4"),
        ({"prompt": "a", "seed": -1}, 400, "from 0 to 4294967295"),
        ({"prompt": "a", "size": "1024x1024"}, 400, "must be 16x16 or auto"),
        ({"prompt": "a", "response_format": "url"}, 400, "b64_json"),
        ({"prompt": "a", "num_steps": 10**9}, 400, "must be left out here"),
        ({"prompt": "a", "guidance_weight": 3}, 400, "draws without guidance"),
        ({"prompt": "a", "output_format": "gif"}, 400, "must be png"),
        ({"prompt": "a", "quality": "hd"}, 400, "'quality' cannot be set here"),
        ({"prompt": "a", "stream": 1}, 400, "true or false"),
        ({"prompt": "a", "stream": True, "n": 2}, 400, "must be 1 with stream"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(served, body, status, message):
    found, content = ask(served[0], body)
    told = json.loads(content)["error"]["message"]
    assert found == status and message in told and "\n" not in told


def test_foreign_pages_and_other_types_are_refused(served):
    port, _ = served
    assert ask(port, {"prompt": "a"}, {"Content-Type": "text/plain"})[0] == 415
    assert ask(port, {"prompt": "a"}, {"Origin": "http://elsewhere.example"})[0] == 403
    assert ask(port, {"prompt": "a"}, {"Origin": f"http://127.0.0.1:{port}"})[0] == 200
    assert get(port, PATH)[0] == 405 and get(port, "/nothing")[0] == 404


def test_health_metrics_and_document(served):
    port, _ = served
    assert get(port, "/health") == (200, b'{"status":"ok","waiting":0}')
    ask(port, {"prompt": ""})
    text = get(port, "/metrics")[1].decode()
    assert 'imagen_jax_requests_total{outcome="400"}' in text and "imagen_jax_draw_seconds_bucket" in text
    document = json.loads(get(port, "/openapi.json")[1])
    assert document["openapi"].startswith("3.")
    schema = document["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]["schema"]
    # What the document says may be asked for is what is taken.
    for name, about in schema["properties"].items():
        if "default" in about:
            assert ask(port, {"prompt": "a", "seed": 1, name: about["default"]})[0] == 200
    assert schema["properties"]["n"]["maximum"] == 4 and schema["required"] == ["prompt"]


@pytest.fixture
def slow(cascade, monkeypatch) -> Iterator[tuple[int, Gated]]:
    monkeypatch.setattr("imagen_jax.serving.server.Engine", Gated)
    config = ServerConfig(batch_sizes=(1,), queue_limit=2, limits=Limits(seconds=0.6))
    with serving(cascade, config) as (port, engine):
        assert isinstance(engine, Gated)
        yield port, engine
        engine.gate.set()


def test_late_requests_fail_a_full_queue_says_429_and_who_goes_is_not_drawn_for(slow):
    port, engine = slow
    engine.submit([Job(prompt="first", seed=0)])
    waits(engine, 0)
    assert ask(port, {"prompt": "late"})[0] == 504
    assert b"event: error" in ask(port, {"prompt": "late", "stream": True})[1]
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", PATH, json.dumps({"prompt": "gone", "n": 2}), {"Content-Type": "application/json"})
    waits(engine, 2)
    assert ask(port, {"prompt": "full"})[0] == 429
    connection.close()
    end = time.monotonic() + 5
    while b'outcome="cancelled"} 1.0' not in get(port, "/metrics")[1]:
        assert time.monotonic() < end
        time.sleep(0.01)
    engine.gate.set()
    assert ask(port, {"prompt": "last"})[0] == 200
    assert "gone" not in engine.prompts and "late" not in engine.prompts


def test_odd_settings_are_refused(cascade):
    with pytest.raises(UserError, match="batch_sizes"):
        Engine(cascade, (0, 1), 3, Metrics())
    with pytest.raises(UserError, match="queue_limit"):
        Engine(cascade, (1,), 0, Metrics())
    with pytest.raises(UserError, match="seconds"):
        Limits(seconds=0.0)
    with pytest.raises(UserError, match="serve a cascade with a base stage"):
        build(cascade.only(first="sr"), ServerConfig())
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="choose another port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(RefusedError):
        parse_generation(b"", Limits(), Offer(size=(2, 2)))


@pytest.mark.slow
def test_the_command_finishes_what_was_begun_after_sigterm_without_tensorflow(cascade, tmp_path):
    cascade.export(str(tmp_path / "bundle"))
    code = (
        "import sys; from imagen_jax.main import main; code = main(sys.argv[1:])\n"
        "print(code, [name for name in ('tensorflow', 'seqio', 'gin') if name in sys.modules], flush=True)"
    )
    words = [sys.executable, "-c", code, "serve", str(tmp_path / "bundle"), "--port=0"]
    words += ["--batch_sizes=1", f"--audit_log={tmp_path / 'log.jsonl'}", "--image_filter=off"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    port = 0
    for line in process.stdout:
        if line.startswith("http://"):
            port = int(line.split("/")[2].rsplit(":", 1)[1])
            break
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(ask(port, {"prompt": "a"})[0]))
    thread.start()
    while not (b"draw_seconds_count 3.0" in get(port, "/metrics")[1] or found):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    thread.join()
    assert found == [200] and process.stdout.read().endswith("143 []\n")
    assert process.wait() == 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
