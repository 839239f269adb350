"""The OpenAPI document of the server."""

from typing import Any

from imagen_jax.serving.requests import MOST_GUIDANCE, Limits, Offer
from imagen_jax.versions import code_version


def openapi(limits: Limits, offer: Offer) -> dict[str, Any]:
    """Describes every path.

    Args:
      limits: how much a request may ask for.
      offer: what a request may choose.
    """
    served = f"{offer.size[1]}x{offer.size[0]}"
    request: dict[str, Any] = {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": {
            "prompt": {"type": "string", "minLength": 1, "maxLength": limits.prompt},
            "n": {"type": "integer", "minimum": 1, "maximum": limits.images, "default": 1},
            "size": {"type": "string", "enum": ["auto", served], "default": "auto"},
            "output_format": {"type": "string", "enum": ["png"], "default": "png"},
            "partial_images": {"type": "integer", "minimum": 0, "maximum": 3, "description": "with stream; all"},
            "response_format": {"type": "string", "enum": ["b64_json"], "default": "b64_json"},
            "seed": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "description": "image i has seed + i"},
            "stream": {"type": "boolean", "default": False, "description": "server-sent events; n must be 1"},
            "model": {"type": "string", "description": "ignored"},
            "user": {"type": "string", "description": "ignored"},
        },
    }
    properties = request["properties"]
    if offer.steps:
        properties["num_steps"] = {"type": "integer", "enum": [*offer.steps]}
    if offer.guided:
        properties["guidance_weight"] = {"type": "number", "exclusiveMinimum": 1, "maximum": MOST_GUIDANCE}
    file = {"type": "string", "format": "binary"}
    form = {**request, "required": ["prompt", "image"], "properties": {**properties, "image": file, "mask": file}}
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
        "413": f"more than {limits.body} bytes, of an edit {limits.upload}",
        "415": "the body is no application/json, of an edit no multipart/form-data",
        "429": "the queue is full; come again",
        "500": "drawing failed",
        "503": "the server is ending",
        "504": f"not drawn within {limits.seconds:g} seconds",
    }
    answers: dict[str, Any] = {code: {"description": why, "content": failure} for code, why in reasons.items()}
    answers["200"] = {
        "description": "PNG files, or events image_generation.partial_image and image_generation.completed; "
        "of an edit, image_edit in place of image_generation",
        "content": {"application/json": {"schema": images}, "text/event-stream": {"schema": {"type": "string"}}},
    }
    body = {"required": True, "content": {"application/json": {"schema": request}}}
    upload = {"required": True, "content": {"multipart/form-data": {"schema": form}}}

    def got(what: str, kind: str) -> dict[str, Any]:
        return {"get": {"responses": {"200": {"description": what, "content": {kind: {}}}}}}

    return {
        "openapi": "3.1.0",
        "info": {"title": "imagen_jax serve", "version": code_version()},
        "paths": {
            "/v1/images/generations": {"post": {"requestBody": body, "responses": answers}},
            "/v1/images/edits": {"post": {"requestBody": upload, "responses": answers}},
            "/health": got("it draws; 503 otherwise", "application/json"),
            "/metrics": got("figures for Prometheus", "text/plain"),
            "/openapi.json": got("this document", "application/json"),
        },
    }
