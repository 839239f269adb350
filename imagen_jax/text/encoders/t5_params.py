"""Parameters of the T5 encoder as trees: random draws, layers apart or stacked, their digest."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.experimental import multihost_utils

from imagen_jax.text.encoders.t5 import T5Config, T5Encoder
from imagen_jax.typing import PyTree

# In the dotted path of stacked layers; `.layers_i.` where they stand apart.
STACKED = ".layers."


def random_params(config: T5Config, seed: int) -> PyTree:
    """Draws the frozen random encoder: equal bytes for equal (config, seed), scanned or not.

    The draw is made in float64 on the CPU and rounded to float32: drawn in float32, the last bit would hang
    on the processor, and the embedding store is tied to the digest of the parameters.
    """
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        key = jax.random.key(seed, impl="threefry2x32")
        tokens = jnp.zeros((1, 2), jnp.int32)
        module = T5Encoder(dataclasses.replace(config, scan_layers=False), param_dtype=jnp.float64)
        params = meta.unbox(jax.jit(module.init)(key, tokens, tokens == 0)["params"])
        params = jax.tree.map(lambda x: np.asarray(x).astype(np.float32), params)
    return stack_layers(params) if config.scan_layers else params


def stack_layers(params: PyTree) -> PyTree:
    """encoder/layers_i → encoder/layers, stacked on a first axis."""
    encoder = dict(params["encoder"])
    layers = [encoder.pop(name) for name in sorted((n for n in encoder if n.startswith("layers_")), key=_number)]
    encoder["layers"] = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    return {**params, "encoder": encoder}


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


class ParamsDigest:
    """Digest of parameter names, shapes and values, whatever the order they come in."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}

    def add(self, path: str, value: np.ndarray) -> None:
        """Takes one parameter; `path` is dotted, its layers stand apart."""
        content = hashlib.sha256(np.ascontiguousarray(value).view(np.uint8).data).hexdigest()
        self._parts[path] = f"{path} {value.shape} {value.dtype} {content}\n"

    def hexdigest(self) -> str:
        """Hex SHA-256 of all that was taken."""
        return hashlib.sha256("".join(self._parts[path] for path in sorted(self._parts)).encode()).hexdigest()


def params_sha256(params: PyTree) -> str:
    """Digest of parameters; equal for layers apart and stacked. One parameter at a time is on the host."""
    digest = ParamsDigest()
    for path, leaf in dotted(params):
        if STACKED not in path:
            digest.add(path, on_host(leaf))
            continue
        for layer in range(leaf.shape[0]):
            digest.add(path.replace(STACKED, f".layers_{layer}."), on_host(leaf[layer]))
    return digest.hexdigest()


def dotted(params: PyTree) -> list[tuple[str, Any]]:
    """Parameters by dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(".".join(str(key.key) for key in path), leaf) for path, leaf in leaves]


def on_host(leaf: Any) -> np.ndarray:
    """A parameter as a NumPy array, also where other hosts hold parts of it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)
