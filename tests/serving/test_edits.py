"""Edits by mask over HTTP, in the shape of OpenAI's images/edits, and settings that requests choose."""

import http.client
import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from imagen_jax.safety.finding import Finding
from imagen_jax.safety.guard import Guard
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.serving.requests import Limits
from imagen_jax.serving.server import ServerConfig
from tests.serving.parts import ask, pixels, serving
from tests.untrained import untrained_cascade

EDITS = "/v1/images/edits"


class Whites:
    """Refuses what is white."""

    def judge(self, image: np.ndarray) -> Finding | None:
        return Finding(category="white", score=1.0) if image.min() == 255 else None


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    import dataclasses

    cascade: Cascade = untrained_cascade().configure(lambda _, own: dataclasses.replace(own, guidance_weight=2.0))
    config = ServerConfig(
        batch_sizes=(1,), steps=(3,), limits=Limits(upload=20000), guard=Guard(image_filters=(Whites(),))
    )
    with serving(cascade, config) as (port, _):
        yield port


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def masked(drawn: np.ndarray) -> bytes:
    """A mask that is transparent where something is to be drawn."""
    return png(np.dstack([np.zeros((*drawn.shape, 3), np.uint8), np.where(drawn, 0, 255).astype(np.uint8)]))


def form(port: int, fields: dict[str, str | bytes], **headers: str) -> tuple[int, bytes]:
    """A request as OpenAI's clients and browsers write it."""
    parts = []
    for name, value in fields.items():
        file = '; filename="x.png"\r\nContent-Type: image/png' if isinstance(value, bytes) else ""
        head = f'--zzz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts.append(head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    head = {"Content-Type": "multipart/form-data; boundary=zzz", **headers}
    connection.request("POST", EDITS, b"".join(parts) + b"--zzz--\r\n", head)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def test_what_the_mask_keeps_stays_as_it_was(port):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        image, drawn = rng.integers(0, 256, (16, 16, 3), np.uint8), rng.random((16, 16)) < rng.uniform(0.1, 0.9)
        name = "image" if seed % 2 else "image[]"
        fields: dict[str, str | bytes] = {"prompt": "a", "seed": f"{seed}", name: png(image), "mask": masked(drawn)}
        status, body = form(port, fields)
        assert status == 200, body
        (found,) = json.loads(body)["data"]
        edited = pixels(found["b64_json"])
        assert found["seed"] == seed
        assert np.array_equal(edited[~drawn], image[~drawn])
        assert (edited[drawn] != image[drawn]).any(axis=1).mean() > 0.9
        # The image's own transparency in place of a mask.
        own = png(np.dstack([image, np.where(drawn, 0, 255).astype(np.uint8)]))
        (again,) = json.loads(form(port, {"prompt": "a", "seed": f"{seed}", "image": own})[1])["data"]
        assert np.array_equal(pixels(again["b64_json"])[~drawn], image[~drawn])
    status, body = form(port, {**fields, "stream": "true"})
    events = [part.split("\ndata: ") for part in body.decode().strip().split("\n\n")]
    assert [name for name, _ in events] == ["event: image_edit.partial_image", "event: image_edit.completed"]
    assert np.array_equal(pixels(json.loads(events[1][1])["b64_json"]), edited)


GREY = np.full((16, 16, 3), 90, np.uint8)
HALF = np.arange(256).reshape(16, 16) < 128


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({}, 400, "image must be a file"),
        ({"image": "text"}, 400, "image must be a file"),
        ({"prompt": b"file"}, 400, "a text, not a file"),
        ({"image": b"none"}, 400, "image cannot be read"),
        ({"image": png(GREY)[:-30], "mask": masked(HALF)}, 400, "cannot be read"),
        ({"image": png(GREY[:8]), "mask": masked(HALF)}, 400, "16x8 pixels; must be 16x16"),
        ({"image": png(GREY)}, 400, "no fully transparent pixel"),
        ({"image": png(GREY), "mask": masked(HALF | True)}, 400, "no pixel that is not transparent"),
        ({"image": png(GREY), "mask": png(GREY)}, 400, "no fully transparent pixel"),
        ({"image": png(GREY + 165), "mask": masked(HALF)}, 400, "the image to edit is refused: it shows white"),
        ({"image": b"a" * 30000}, 413, "at most 20000 bytes"),
        ({"n": "1.5"}, 400, "from 1 to 8"),
        ({"strength": "1"}, 400, "cannot be set here"),
    ],
)
def test_what_is_no_edit_is_refused_in_one_line(port, fields, status, message):
    found, content = form(port, {"prompt": "a", **fields})
    told = json.loads(content)["error"]["message"]
    assert found == status and message in told and "\n" not in told


def test_foreign_pages_and_broken_forms_are_refused(port):
    assert form(port, {"prompt": "a"}, Origin="http://elsewhere.example")[0] == 403
    assert ask(port, b"{}", path=EDITS)[0] == 415
    for kind in ("multipart/form-data", "multipart/form-data; boundary=zzz"):
        assert ask(port, b"no form", {"Content-Type": kind}, path=EDITS)[0] == 400


def test_steps_and_guidance_of_a_request_change_its_image(port):
    def drawn(**more: object) -> np.ndarray:
        status, body = ask(port, {"prompt": "a", "seed": 1, **more})
        assert status == 200, body
        return pixels(json.loads(body)["data"][0]["b64_json"])

    plain = drawn()
    assert np.array_equal(drawn(guidance_weight=2), plain)
    assert not np.array_equal(drawn(num_steps=3), plain)
    assert not np.array_equal(drawn(guidance_weight=9.5), plain)
    for wrong in ({"num_steps": 4}, {"num_steps": True}, {"guidance_weight": 1}, {"guidance_weight": 1e9}):
        assert ask(port, {"prompt": "a", **wrong})[0] == 400


def test_prompts_do_not_reach_the_log(port, capfd):
    """Longer than the text encoder takes, which `sample` tells of."""
    assert ask(port, {"prompt": "secret words of somebody"})[0] == 200
    assert "secret" not in "".join(capfd.readouterr())
