"""Requests for images, checked: the shape is that of OpenAI's images API, with sampling settings added."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagen_jax.errors import UserError, printable
from imagen_jax.files import is_unicode
from imagen_jax.image_files import decode_image, header_of
from imagen_jax.serving.engine import Engine, Image, Mask, Settings, any_seed
from imagen_jax.typing import UInt8

# Words that OpenAI's clients send and that change nothing here.
_IGNORED = ("model", "user")
_KNOWN = (
    *("prompt", "n", "size", "response_format", "output_format", "stream", "partial_images"),
    *("seed", "num_steps", "guidance_weight"),
)
MOST_GUIDANCE = 30.0
_FORMATS = ("PNG", "JPEG", "WEBP")
_FILES = ("image", "mask")


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
      body: bytes of a request that holds no file.
      upload: bytes of a request that holds an image and a mask.
      prompt: characters of a prompt.
      images: images of a request.
      seconds: until a request is given up.
    """

    body: int = 64 << 10
    upload: int = 16 << 20
    prompt: int = 1000
    images: int = 8
    seconds: float = 300.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise UserError(f"{field.name} ({getattr(self, field.name)}) must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """The choices that a cascade leaves to requests.

    Args:
      size: height and width of its images.
      steps: numbers of steps besides its own.
      guided: any stage is guided.
    """

    size: tuple[int, int]
    steps: tuple[int, ...] = ()
    guided: bool = False

    @classmethod
    def of(cls, engine: Engine) -> "Offer":
        """That of an engine."""
        return cls(size=engine.image_size, steps=engine.steps, guided=engine.guided)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Images to draw from one prompt.

    Args:
      prompt: the caption.
      seeds: one an image.
      settings: how.
      edit: an image, and True where it is drawn anew; None: all is drawn.
      stream: send events while they are drawn.
      partial_images: the most images of stages before the last that are sent then; None: all.
    """

    prompt: str
    seeds: tuple[int, ...]
    settings: Settings = Settings()
    edit: tuple[Image, Mask] | None = None
    stream: bool = False
    partial_images: int | None = None


def parse_generation(body: bytes, limits: Limits, offer: Offer) -> Asked:
    """Reads a request for images.

    Args:
      body: JSON of prompt, n (1), size ("auto"), response_format ("b64_json"), output_format ("png"), seed (any),
        num_steps and guidance_weight (the cascade's), stream (false), partial_images (all). Image i of n has seed + i,
        modulo 2**32.
      limits: how much may be asked for.
      offer: what may be chosen.

    Raises:
      RefusedError: it is no such JSON, or asks for too much.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is no JSON: {str(error)[:100]}") from error
    if not isinstance(found, dict):
        raise RefusedError('the body must be a JSON object, e.g. {"prompt": "a red cube"}')
    _check_names(found, _KNOWN)
    return _asked(found, limits, offer)


def parse_edit(form: Mapping[str, str | bytes], limits: Limits, offer: Offer) -> Asked:
    """Reads a request to draw a part of an image anew.

    Args:
      form: fields of `parse_generation` as texts; besides files, as bytes: image, of the size that is drawn, and mask,
        a PNG as large whose fully transparent pixels are drawn anew. Without mask the image's own are.
      limits, offer: as there.

    Raises:
      RefusedError: it is no such form, or asks for too much.
    """
    _check_names(form, (*_KNOWN, *_FILES))
    files = {name: content for name, content in form.items() if isinstance(content, bytes)}
    if wrong := sorted(files.keys() ^ ({*_FILES} & form.keys())):
        what = "a file" if wrong[0] in _FILES else "a text, not a file"
        raise RefusedError(f"{wrong[0]} must be {what}", field=wrong[0])
    fields: dict[str, Any] = {name: text for name, text in form.items() if name not in _FILES}
    for name in ("n", "seed", "num_steps", "partial_images"):
        if re.fullmatch("[0-9]{1,12}", fields.get(name, "")):
            fields[name] = int(fields[name])
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,9})?", fields.get("guidance_weight", "")):
        fields["guidance_weight"] = float(fields["guidance_weight"])
    fields["stream"] = {"true": True, "false": False}.get(fields.get("stream", "false"), fields.get("stream"))
    # The small checks first: decoding takes longest.
    asked = _asked(fields, limits, offer)
    return dataclasses.replace(asked, edit=_edit(files, offer.size))


def _asked(found: Mapping[str, Any], limits: Limits, offer: Offer) -> Asked:
    prompt = found.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RefusedError("prompt must be a text that is not empty", field="prompt")
    if len(prompt) > limits.prompt:
        raise RefusedError(f"prompt has {len(prompt)} characters; at most {limits.prompt} can be", field="prompt")
    if not is_unicode(prompt):
        raise RefusedError("prompt holds half a character; send Unicode text", field="prompt")
    number = _count(found, "n", 1, 1, limits.images)
    seed = _count(found, "seed", any_seed(), 0, 2**32 - 1)
    partial = _count(found, "partial_images", -1, 0, 3)
    served = f"{offer.size[1]}x{offer.size[0]}"
    if found.get("size") not in (None, "auto", served):
        raise RefusedError(f"size ({found['size']!r:.40}) must be {served} or auto", field="size")
    if found.get("response_format") not in (None, "b64_json"):
        raise RefusedError("response_format must be b64_json: this server keeps no images", field="response_format")
    if found.get("output_format") not in (None, "png"):
        raise RefusedError("output_format must be png", field="output_format")
    stream = found.get("stream")
    if stream not in (None, True, False) or isinstance(stream, int) and not isinstance(stream, bool):
        raise RefusedError("stream must be true or false", field="stream")
    if stream and number > 1:
        raise RefusedError(f"n ({number}) must be 1 with stream", field="n")
    return Asked(
        prompt=prompt,
        seeds=tuple((seed + place) % 2**32 for place in range(number)),
        settings=_settings(found, offer),
        stream=bool(stream),
        partial_images=None if partial < 0 else partial,
    )


def _settings(found: Mapping[str, Any], offer: Offer) -> Settings:
    steps, weight = found.get("num_steps"), found.get("guidance_weight")
    if steps is not None and (type(steps) is not int or steps not in offer.steps):
        may = f"one of {', '.join(map(str, offer.steps))}, or left out" if offer.steps else "left out here"
        raise RefusedError(f"num_steps ({ascii(steps)[:40]}) must be {may}", field="num_steps")
    if weight is None:
        return Settings(num_steps=steps)
    if not offer.guided:
        raise RefusedError(
            "guidance_weight cannot be set: this cascade draws without guidance", field="guidance_weight"
        )
    if type(weight) not in (int, float) or not (math.isfinite(weight) and 1 < weight <= MOST_GUIDANCE):
        told = f"guidance_weight ({ascii(weight)[:40]}) must be a number above 1, up to {MOST_GUIDANCE:g}"
        raise RefusedError(told, field="guidance_weight")
    return Settings(num_steps=steps, guidance_weight=float(weight))


def _edit(files: Mapping[str, bytes], size: tuple[int, int]) -> tuple[Image, Mask]:
    if "image" not in files:
        raise RefusedError("image must be a file: the picture to edit", field="image")
    image, alpha = _pixels("image", files["image"], size)
    masked = "mask" in files
    mask = (_pixels("mask", files["mask"], size)[1] if masked else alpha) == 0
    if not mask.any() or mask.all():
        which = "mask" if masked else "image (no mask is given)"
        what = "no pixel that is not transparent" if mask.any() else "no fully transparent pixel"
        raise RefusedError(f"{which} has {what}; make those transparent that are to be drawn anew", field="mask")
    return image, mask


def _pixels(name: str, content: bytes, size: tuple[int, int]) -> tuple[Image, UInt8[np.ndarray, "h w"]]:
    """Colours and alpha of a file of the right size, upright."""
    try:
        header = header_of(content)
        if header.format not in _FORMATS:
            raise RefusedError(f"{name} must be {', '.join(_FORMATS)}; it is {header.format}", field=name)
        found = (header.height, header.width)
        # Only then are its pixels read, which may be many.
        image = decode_image(content) if found == size else None
        if image is None or (image.height, image.width) != size:
            told = f"{name} is {found[1]}x{found[0]} pixels; must be {size[1]}x{size[0]}"
            raise RefusedError(told, field=name)
        return np.asarray(image), np.asarray(header.convert("RGBA").getchannel("A"))
    except RefusedError:
        raise
    except Exception as error:  # Each format raises what its decoder happens to raise.
        raise RefusedError(f"{name} cannot be read: {str(error)[:100]}", field=name) from error


def _check_names(found: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in found:
        if name not in (*known, *_IGNORED):
            what = f"{ascii(name)[:40]} cannot be set here; a request has {', '.join(known)}"
            raise RefusedError(what, field=ascii(name)[1:40])


def _count(found: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = found.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise RefusedError(f"{name} ({ascii(value)[:40]}) must be a whole number from {low} to {high}", field=name)
    return value
