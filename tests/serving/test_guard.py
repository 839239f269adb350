"""What a server refuses and notes, and what its images carry."""

import argparse
import base64
import hashlib
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from imagen_jax.commands.parts.guard import guard_of
from imagen_jax.commands.serve import COMMAND
from imagen_jax.safety.audit import AuditLog
from imagen_jax.safety.guard import Guard
from imagen_jax.safety.prompt_filter import PromptFilter
from imagen_jax.safety.provenance import XMP_KEY, Provenance
from imagen_jax.safety.watermark import DEFAULT_KEY, detect
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.serving.server import ServerConfig
from imagen_jax.versions import code_version
from tests.serving.parts import Gated, ask, pixels, serving
from tests.untrained import untrained_cascade


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return untrained_cascade()


def test_a_refused_prompt_is_noted_and_not_drawn(cascade, tmp_path, monkeypatch):
    monkeypatch.setattr("imagen_jax.serving.server.Engine", Gated)
    log = tmp_path / "log.jsonl"
    guard = Guard(prompt_filter=PromptFilter({"fruit": ["pear"]}), audit=AuditLog(path=str(log)))
    with serving(cascade, ServerConfig(batch_sizes=(1,), guard=guard)) as (port, engine):
        assert isinstance(engine, Gated)
        engine.gate.set()
        for stream in (False, True):
            status, body = ask(port, {"prompt": "a Pear", "seed": 3, "stream": stream})
            assert status == 400
            assert json.loads(body)["error"] == {
                "message": "prompt is refused: it holds words of the category fruit",
                "type": "invalid_request_error",
                "param": "prompt",
                "code": "content_policy_violation",
            }
        assert ask(port, {"prompt": "a plum", "seed": 4, "n": 2})[0] == 200
        assert engine.prompts == ["", "", "a plum", "a plum"]
        noted = [json.loads(line) for line in log.read_text().splitlines()]
        assert [(one["verdict"], one["seed"], one["images"]) for one in noted] == [
            ("refused", 3, 1),
            ("refused", 3, 1),
            ("allowed", 4, 2),
        ]
        # What cannot be noted is not drawn.
        log.unlink()
        log.mkdir()
        assert ask(port, {"prompt": "a plum"})[0] == 500 and len(engine.prompts) == 4


def test_the_command_guards_unless_each_part_is_switched_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    COMMAND.add_flags(parser)
    guard = guard_of(parser.parse_args(["bundle"]))
    assert guard.watermark == DEFAULT_KEY
    assert guard.provenance == Provenance(generator=f"imagen_jax {code_version()}")
    assert guard.prompt_filter is not None and guard.prompt_filter.match("nude") is not None
    assert guard.audit is not None and guard.audit.prompts == "digest" and os.path.exists("serve_audit.jsonl")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "bundle.json").write_text("{}")
    guard = guard_of(parser.parse_args(["own"]))
    assert guard.provenance is not None and guard.provenance.bundle is None
    (tmp_path / "own" / "digests.json").write_text("{}")
    guard = guard_of(parser.parse_args(["own"]))
    assert guard.provenance is not None and guard.provenance.bundle == hashlib.sha256(b"{}").hexdigest()
    (tmp_path / "words.txt").write_text("[fruit]\npear\n")
    own = ["bundle", "--watermark=mine", "--prompt_filter=words.txt", "--audit_log=own.jsonl", "--audit_prompts=text"]
    guard = guard_of(parser.parse_args(own))
    assert guard.prompt_filter is not None and guard.prompt_filter.match("nude") is None
    assert (
        guard.watermark == "mine"
        and guard.admit("a pear", 1, 1) is not None
        and "a pear" in (tmp_path / "own.jsonl").read_text()
    )
    off = [
        "bundle",
        "--prompt_filter=off",
        "--audit_log=off",
        "--watermark=off",
        "--provenance=off",
        "--image_filter=off",
    ]
    assert guard_of(parser.parse_args(off)) == Guard()


class Grey(Gated):
    """Draws what is large enough for a watermark."""

    def _draw(self, jobs, size):
        return [np.full((256, 256, 3), 120, np.uint8) for _ in super()._draw(jobs, size)]


def test_images_that_are_large_enough_are_marked_and_say_where_they_are_from(cascade, monkeypatch):
    monkeypatch.setattr("imagen_jax.serving.server.Engine", Grey)
    for key, provenance in (("mine", Provenance(generator="x", bundle="0" * 64)), (None, None)):
        guard = Guard(watermark=key, provenance=provenance)
        with serving(cascade, ServerConfig(batch_sizes=(1,), guard=guard)) as (port, engine):
            assert isinstance(engine, Grey)
            engine.gate.set()
            (drawn,) = json.loads(ask(port, {"prompt": "a"})[1])["data"]
        image = pixels(drawn["b64_json"])
        text = Image.open(io.BytesIO(base64.b64decode(drawn["b64_json"]))).text
        assert text.get(XMP_KEY) == (None if provenance is None else provenance.xmp())
        assert detect(image, "mine").found == (key is not None) and not detect(image).found
        assert abs(image.mean() - 120) < 1
