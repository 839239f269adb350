"""FeatureExtractor: what metrics need of a network, and what all extractors share."""

import abc
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.evals.features.pixels import Preparation
from imagen_jax.files import files_under, sha256_of_files
from imagen_jax.typing import Array, Float, UInt8


@runtime_checkable
class FeatureExtractor(Protocol):
    """Images to features, whatever is measured on them.

    Attributes:
      kind: of network: "inception", "clip" or "dinov2".
      layers: names that `features` takes.
      fingerprint: sha256 of the weights, which stands beside every result.
    """

    kind: str
    layers: tuple[str, ...]
    fingerprint: str

    def features(
        self, images: UInt8[np.ndarray, "b h w 3"], layers: Sequence[str] = ...
    ) -> dict[str, Float[np.ndarray, "b _d"]]:
        """Layers of uint8 images of one size, as float32 [b, d]."""


class TransformerExtractor(abc.ABC):
    """Features of one layer by a vision transformer, which takes images as its folder prepares them.

    Args:
      preparation: from 8-bit pixels to what the network takes.
      side: of the images that the network takes, in pixels.
      batch_size: images computed at a time; >= 1.
    """

    layers: tuple[str, ...]

    def __init__(self, preparation: Preparation, side: int, batch_size: int):
        self._preparation, self._side, self._batch_size = preparation, side, batch_size

    @abc.abstractmethod
    def features_of_prepared(self, pixels: Float[np.ndarray, "b h w 3"]) -> Float[Array, "b _d"]:
        """Features of one batch of images that `prepare` made."""

    def features(
        self, images: UInt8[np.ndarray, "b h w 3"], layers: Sequence[str] | None = None
    ) -> dict[str, Float[np.ndarray, "b _d"]]:
        """See FeatureExtractor."""
        check_images(images)
        return self._layers_of(images, layers, lambda part: np.stack([self.prepare(image) for image in part]))

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "_h _w 3"]:
        """One image as the network takes it, float32."""
        return self._preparation.at_side(image, self._side)

    def features_of_resized(
        self, pixels: Float[np.ndarray, "b h w 3"], layers: Sequence[str] | None = None
    ) -> dict[str, Float[np.ndarray, "b _d"]]:
        """Layers of images that `prepare` made; None: all."""
        return self._layers_of(pixels, layers, lambda part: part)

    def _layers_of(
        self, rows: np.ndarray, layers: Sequence[str] | None, prepared: Callable[[np.ndarray], np.ndarray]
    ) -> dict[str, np.ndarray]:
        check_layers(self.layers if layers is None else layers, self.layers)
        (name,) = self.layers
        return in_batches(lambda part: {name: self.features_of_prepared(prepared(part))}, rows, self._batch_size)


def check_images(images: Any) -> None:
    """Refuses what is no array uint8 [b, h, w, 3].

    Raises:
      UserError: says what it is.
    """
    found = np.asarray(images)
    if found.ndim != 4 or found.shape[3] != 3 or found.dtype != np.uint8 or not all(found.shape[1:]):
        raise UserError(
            f"images must be uint8 [b, h, w, 3] of 0 to 255; got {found.dtype} {list(found.shape)}: from [-1, 1] they "
            "are np.rint((x + 1) * 127.5).astype(np.uint8)"
        )


def check_layers(layers: Sequence[str], known: Sequence[str]) -> None:
    """Refuses layers that an extractor does not have.

    Raises:
      UserError: names the first.
    """
    if isinstance(layers, str) or not layers:
        raise UserError(f'layers ({layers!r}) must be a tuple of names, such as ("{known[0]}",)')
    for layer in layers:
        if layer not in known:
            raise UserError(f"layer {layer!r} is unknown; this extractor has {', '.join(known)}")


def in_batches(
    run: Callable[[np.ndarray], Mapping[str, Any]], rows: np.ndarray, batch_size: int
) -> dict[str, Float[np.ndarray, "b _d"]]:
    """Runs a program on batches of one size, the last filled up with its own last row.

    Args:
      run: batch_size rows → arrays of as many rows, by name.
      rows: at least one.
      batch_size: >= 1.

    Raises:
      UserError: there are no rows.
    """
    if not len(rows):
        raise UserError("there are no images; give at least one")
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        filled = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), axis=0)])
        parts.append({name: np.asarray(made)[: len(part)] for name, made in run(filled).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def folder_fingerprint(path: str) -> str:
    """Sha256 of the names and sha256s of a Hugging Face folder's config.json and weights."""
    wanted = ("config.json", "preprocessor_config.json")
    names = sorted(name for name in files_under(path) if name in wanted or name.endswith(".safetensors"))
    digests = sha256_of_files([os.path.join(path, name) for name in names])
    lines = [f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
