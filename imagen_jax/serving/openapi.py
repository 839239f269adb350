"""The OpenAPI document of the server."""

from typing import Any

from imagen_jax.serving.requests import Limits
from imagen_jax.versions import code_version


def openapi(limits: Limits, size: tuple[int, int]) -> dict[str, Any]:
    """Describes every path.

    Args:
      limits: how much a request may ask for.
      size: height and width of the images.
    """
    served = f"{size[1]}x{size[0]}"
    request = {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": {
            "prompt": {"type": "string", "minLength": 1, "maxLength": limits.prompt},
            "n": {"type": "integer", "minimum": 1, "maximum": limits.images, "default": 1},
            "size": {"type": "string", "enum": ["auto", served], "default": "auto"},
            "response_format": {"type": "string", "enum": ["b64_json"], "default": "b64_json"},
            "seed": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "description": "image i has seed + i"},
            "stream": {"type": "boolean", "default": False, "description": "server-sent events; n must be 1"},
            "model": {"type": "string", "description": "ignored"},
            "user": {"type": "string", "description": "ignored"},
        },
    }
    image = {"type": "object", "properties": {"b64_json": {"type": "string"}, "seed": {"type": "integer"}}}
    images = {
        "type": "object",
        "properties": {"created": {"type": "integer"}, "data": {"type": "array", "items": image}},
    }
    told = {"type": ["string", "null"]}
    problem = {
        "type": "object",
        "properties": {"error": {"type": "object", "properties": {name: told for name in ("message", "code")}}},
    }
    failure = {"application/json": {"schema": problem}}
    reasons = {
        "400": "a field is wrong, or the prompt is refused: code content_policy_violation",
        "403": "a foreign page asks",
        "413": f"more than {limits.body} bytes",
        "415": "the body is no application/json",
        "429": "the queue is full; come again",
        "500": "drawing failed",
        "503": "the server is ending",
        "504": f"not drawn within {limits.seconds:g} seconds",
    }
    answers: dict[str, Any] = {code: {"description": why, "content": failure} for code, why in reasons.items()}
    answers["200"] = {
        "description": "PNG files, or events image_generation.partial_image and image_generation.completed",
        "content": {"application/json": {"schema": images}, "text/event-stream": {"schema": {"type": "string"}}},
    }
    body = {"required": True, "content": {"application/json": {"schema": request}}}

    def got(what: str, kind: str) -> dict[str, Any]:
        return {"get": {"responses": {"200": {"description": what, "content": {kind: {}}}}}}

    return {
        "openapi": "3.1.0",
        "info": {"title": "imagen_jax serve", "version": code_version()},
        "paths": {
            "/v1/images/generations": {"post": {"requestBody": body, "responses": answers}},
            "/health": got("it draws; 503 otherwise", "application/json"),
            "/metrics": got("figures for Prometheus", "text/plain"),
            "/openapi.json": got("this document", "application/json"),
        },
    }
