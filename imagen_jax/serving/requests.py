"""Requests for images, checked: the shape is that of OpenAI's images API, with `seed` added."""

import dataclasses
import json
from typing import Any

from imagen_jax.errors import UserError, printable
from imagen_jax.files import is_unicode
from imagen_jax.serving.engine import any_seed

# Words that OpenAI's clients send and that change nothing here.
_IGNORED = ("model", "user")
_KNOWN = ("prompt", "n", "size", "response_format", "seed", "stream")


class RefusedError(UserError):
    """A request that is not served.

    Args:
      message: why, in one line.
      status: of HTTP.
      field: of the request that is wrong.
      code: a word for programs, where there is one.
    """

    def __init__(self, message: str, status: int = 400, field: str | None = None, code: str | None = None):
        super().__init__(printable(message))
        self.status, self.field, self.code = status, field, code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of what one request may ask for.

    Args:
      body: bytes of a request.
      prompt: characters of a prompt.
      images: images of a request.
      seconds: until a request is given up.
    """

    body: int = 64 << 10
    prompt: int = 1000
    images: int = 8
    seconds: float = 300.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise UserError(f"{field.name} ({getattr(self, field.name)}) must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """Images to draw from one prompt.

    Args:
      prompt: the caption.
      seeds: one an image.
      stream: send events while they are drawn.
    """

    prompt: str
    seeds: tuple[int, ...]
    stream: bool = False


def parse_generation(body: bytes, limits: Limits, size: tuple[int, int]) -> Generation:
    """Reads a request for images.

    Args:
      body: JSON of prompt, n (1), size ("auto"), response_format ("b64_json"), seed (any), stream (false). Image i of n
        has seed + i, modulo 2**32.
      limits: how much may be asked for.
      size: height and width of the images that are drawn.

    Raises:
      RefusedError: it is no such JSON, or asks for too much.
    """
    found = _fields(body)
    prompt = found.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RefusedError("prompt must be a text that is not empty", field="prompt")
    if len(prompt) > limits.prompt:
        raise RefusedError(f"prompt has {len(prompt)} characters; at most {limits.prompt} can be", field="prompt")
    if not is_unicode(prompt):
        raise RefusedError("prompt holds half a character; send Unicode text", field="prompt")
    number = _count(found, "n", 1, 1, limits.images)
    seed = _count(found, "seed", any_seed(), 0, 2**32 - 1)
    served = f"{size[1]}x{size[0]}"
    if found.get("size") not in (None, "auto", served):
        raise RefusedError(f"size ({found['size']!r:.40}) must be {served} or auto", field="size")
    if found.get("response_format") not in (None, "b64_json"):
        raise RefusedError("response_format must be b64_json: this server keeps no images", field="response_format")
    stream = found.get("stream")
    if stream not in (None, True, False) or isinstance(stream, int) and not isinstance(stream, bool):
        raise RefusedError("stream must be true or false", field="stream")
    if stream and number > 1:
        raise RefusedError(f"n ({number}) must be 1 with stream", field="n")
    seeds = tuple((seed + place) % 2**32 for place in range(number))
    return Generation(prompt=prompt, seeds=seeds, stream=bool(stream))


def _fields(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is no JSON: {str(error)[:100]}") from error
    if not isinstance(found, dict):
        raise RefusedError('the body must be a JSON object, e.g. {"prompt": "a red cube"}')
    for name in found:
        if name not in (*_KNOWN, *_IGNORED):
            what = f"{ascii(name)[:40]} cannot be set here; a request has {', '.join(_KNOWN)}"
            raise RefusedError(what, field=ascii(name)[1:40])
    return found


def _count(found: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = found.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise RefusedError(f"{name} ({ascii(value)[:40]}) must be a whole number from {low} to {high}", field=name)
    return value
