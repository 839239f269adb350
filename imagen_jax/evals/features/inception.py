"""Inception v3 with the weights of 2015-12-05, on which FID, KID and Inception scores are defined (arXiv 1512.00567).

It is the network of TensorFlow's graph, not torchvision's: average pools divide by the pixels that there are,
Mixed_7c pools by the maximum, batch norm has epsilon 1e-3, there are 1008 classes. Images of any size are resized to
299 x 299 as TensorFlow 1 did (`resize.tf1_bilinear`), then (x - 128) / 128.

Norms are folded into the kernels as they load. Layers, by their widths: "64" and "192" after the first two max pools,
"768" before Mixed_7a, "2048" the last pool, each averaged over space; "logits_unbiased" and "logits" without and with
the last bias.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imagen_jax.checks import check_count
from imagen_jax.evals.features.arrays import check_shapes
from imagen_jax.evals.features.extractor import check_images, check_layers, in_batches
from imagen_jax.evals.features.resize import tf1_bilinear
from imagen_jax.files import sha256_of_file
from imagen_jax.typing import Array, Float, PyTree, UInt8

SIZE = 299
LAYERS = ("64", "192", "768", "2048", "logits_unbiased", "logits")
CLASSES = 1008
_EPSILON = 1e-3
# Pixels on a side; those of the stem and the first blocks are larger.
_LARGE = 32


class Unit(nn.Module):
    """Convolution with a folded norm, and relu."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    same: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w _c"]:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        padding = [((size - 1) // 2,) * 2 if self.same else (0, 0) for size in self.kernel]
        # XLA's convolutions are slow on a CPU where images are large and channels few, and with kernels of one pixel.
        by_products = jax.default_backend() == "cpu" and (x.shape[2] > _LARGE or self.kernel == (1, 1))
        y = (_products if by_products else _convolution)(x, kernel, self.stride, padding)
        return nn.relu(y + bias)


def _convolution(x: Array, kernel: Array, stride: int, padding: Sequence[tuple[int, int]]) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )


def _products(x: Array, kernel: Array, stride: int, padding: Sequence[tuple[int, int]]) -> Array:
    """The same as a sum of matrix products, one for each row of the kernel."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = kernel.shape[:2]
    rows, columns = (
        (size - taps) // stride * stride + 1 for size, taps in zip(x.shape[1:3], (height, width), strict=True)
    )
    wide = jnp.concatenate([x[:, :, j : j + columns : stride] for j in range(width)], -1)
    parts = (wide[:, i : i + rows : stride] @ kernel[i].reshape(-1, kernel.shape[-1]) for i in range(height))
    return functools.reduce(jnp.add, parts)


def _shifted(x: Array, stride: int) -> list[Array]:
    """The nine inputs of each window of 3 x 3, without padding."""
    rows, columns = ((size - 3) // stride * stride + 1 for size in x.shape[1:3])
    return [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(3) for j in range(3)]


# XLA's windowed reductions are slow on a CPU; sums and maxima of slices are not.
def _max_pool(x: Array, stride: int = 2) -> Array:
    return functools.reduce(jnp.maximum, _shifted(x, stride))


def _padded(x: Array, value: float) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


def _average_pool(x: Array) -> Array:
    """Mean of 3 x 3 pixels, of those that there are at the edges."""
    numbers = [np.convolve(np.ones(size), np.ones(3), "same") for size in x.shape[1:3]]
    counts = (numbers[0][:, None] * numbers[1])[None, :, :, None].astype(np.float32)
    return functools.reduce(jnp.add, _shifted(_padded(x, 0.0), 1)) / counts


class Branches(nn.Module):
    """Branches of units side by side, and a pool.

    Args:
      branches: rows of (name, channels, kernel) one after the other; a row of several ends in units side by side.
      pool: "average", "max" or "reduce", which halves the size and has no unit.
      pool_features: channels of the pool's unit.
    """

    branches: tuple[tuple[tuple[Any, ...], ...], ...]
    pool: str
    pool_features: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w _c"]:
        reduces = self.pool == "reduce"
        parts = []
        for branch in self.branches:
            y = x
            for number, units in enumerate(branch):
                last = number == len(branch) - 1
                ends = [units] if isinstance(units[0], str) else units
                stride, same = (2, False) if reduces and last else (1, True)
                made = [Unit(channels, kernel, stride, same, name=name)(y) for name, channels, kernel in ends]
                y = jnp.concatenate(made, -1) if len(made) > 1 else made[0]
            parts.append(y)
        if reduces:
            parts.append(_max_pool(x))
        elif self.pool == "max":
            pooled = _max_pool(_padded(x, -jnp.inf), 1)
            parts.append(Unit(self.pool_features, name="branch_pool")(pooled))
        else:
            parts.append(Unit(self.pool_features, name="branch_pool")(_average_pool(x)))
        return jnp.concatenate(parts, -1)


_1, _3, _5 = (1, 1), (3, 3), (5, 5)


def _block_a(pool_features: int, name: str) -> Branches:
    return Branches(
        (
            (("branch1x1", 64, _1),),
            (("branch5x5_1", 48, _1), ("branch5x5_2", 64, _5)),
            (("branch3x3dbl_1", 64, _1), ("branch3x3dbl_2", 96, _3), ("branch3x3dbl_3", 96, _3)),
        ),
        "average",
        pool_features,
        name=name,
    )


def _block_b(name: str) -> Branches:
    double = (("branch3x3dbl_1", 64, _1), ("branch3x3dbl_2", 96, _3), ("branch3x3dbl_3", 96, _3))
    return Branches(((("branch3x3", 384, _3),), double), "reduce", name=name)


def _block_c(c: int, name: str) -> Branches:
    wide, tall = (1, 7), (7, 1)
    return Branches(
        (
            (("branch1x1", 192, _1),),
            (("branch7x7_1", c, _1), ("branch7x7_2", c, wide), ("branch7x7_3", 192, tall)),
            (
                ("branch7x7dbl_1", c, _1),
                ("branch7x7dbl_2", c, tall),
                ("branch7x7dbl_3", c, wide),
                ("branch7x7dbl_4", c, tall),
                ("branch7x7dbl_5", 192, wide),
            ),
        ),
        "average",
        192,
        name=name,
    )


def _block_d(name: str) -> Branches:
    return Branches(
        (
            (("branch3x3_1", 192, _1), ("branch3x3_2", 320, _3)),
            (
                ("branch7x7x3_1", 192, _1),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, _3),
            ),
        ),
        "reduce",
        name=name,
    )


def _block_e(pool: str, name: str) -> Branches:
    def ends(unit: str) -> tuple[tuple[Any, ...], ...]:
        return (f"{unit}a", 384, (1, 3)), (f"{unit}b", 384, (3, 1))

    return Branches(
        (
            (("branch1x1", 320, _1),),
            (("branch3x3_1", 384, _1), ends("branch3x3_2")),
            (("branch3x3dbl_1", 448, _1), ("branch3x3dbl_2", 384, _3), ends("branch3x3dbl_3")),
        ),
        pool,
        192,
        name=name,
    )


def _pooled(x: Array) -> Array:
    return jnp.mean(x, axis=(1, 2))


class Stem(nn.Module):
    """Units before the first block: [b, 299, 299, 3] → [b, 35, 35, 192], and layer "64"."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _h _w 192"], Float[Array, "b 64"]]:
        x = Unit(32, _3, 2, False, name="Conv2d_1a_3x3")(x)
        x = Unit(32, _3, 1, False, name="Conv2d_2a_3x3")(x)
        x = first = _max_pool(Unit(64, _3, name="Conv2d_2b_3x3")(x))
        x = Unit(80, name="Conv2d_3b_1x1")(x)
        return _max_pool(Unit(192, _3, 1, False, name="Conv2d_4a_3x3")(x)), _pooled(first)


class _StemByImage(nn.Module):
    """The stem, an image at a time: what it makes of one stays in a CPU's caches, what it makes of eight does not."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _h _w 192"], Float[Array, "b 64"]]:
        stem = Stem()
        nn.share_scope(self, stem)
        scanned = nn.scan(
            lambda module, carry, image: (carry, module(image)),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        _, (y, first) = scanned(stem, None, x[:, None])
        return y[:, 0], first[:, 0]


class Inception(nn.Module):
    """Images of 299 x 299, as (x - 128) / 128 → every layer of LAYERS."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b _d"]]:
        stem = _StemByImage() if jax.default_backend() == "cpu" else Stem()
        nn.share_scope(self, stem)
        x, first = stem(x)
        layers = {"64": first, "192": _pooled(x)}
        for letter, width in zip("bcd", (32, 64, 64), strict=True):
            x = _block_a(width, f"Mixed_5{letter}")(x)
        x = _block_b("Mixed_6a")(x)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = _block_c(width, f"Mixed_6{letter}")(x)
        layers["768"] = _pooled(x)
        x = _block_d("Mixed_7a")(x)
        x = _block_e("average", "Mixed_7b")(x)
        x = _block_e("max", "Mixed_7c")(x)
        layers["2048"] = _pooled(x)
        kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (2048, CLASSES))
        bias = self.param("fc_bias", nn.initializers.zeros, (CLASSES,))
        layers["logits_unbiased"] = jnp.dot(layers["2048"], kernel, precision=jax.lax.Precision.HIGHEST)
        layers["logits"] = layers["logits_unbiased"] + bias
        return layers


def params_of(path: str, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """Parameters of `Inception` from arrays in the names of PyTorch's files.

    Args:
      path: of the file, for messages.
      arrays: Mixed_5b.branch1x1.conv.weight, ….bn.weight, fc.weight and so on.

    Raises:
      UserError: they are of another network.
    """
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    wanted = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    leaves = {name.removesuffix(".kernel"): leaf.shape for name, leaf in _leaves(wanted) if name.endswith(".kernel")}
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, 2048), "fc.bias": (CLASSES,)}
    for name, (height, width, inputs, outputs) in leaves.items():
        shapes[f"{name}.conv.weight"] = (outputs, inputs, height, width)
        shapes |= {f"{name}.bn.{part}": (outputs,) for part in ("weight", "bias", "running_mean", "running_var")}
    check_shapes(path, arrays, shapes, "Inception v3 of 2015-12-05 (torchvision's has 1000 classes and is another one)")
    exact = {name: np.asarray(arrays[name]).astype(np.float64) for name in shapes}
    params: dict[str, Any] = {"fc_kernel": exact["fc.weight"].T, "fc_bias": exact["fc.bias"]}
    for name in leaves:
        scale = exact[f"{name}.bn.weight"] / np.sqrt(exact[f"{name}.bn.running_var"] + _EPSILON)
        place = params
        for part in name.split("."):
            place = place.setdefault(part, {})
        place["kernel"] = exact[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * scale
        place["bias"] = exact[f"{name}.bn.bias"] - exact[f"{name}.bn.running_mean"] * scale
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), params)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found


class InceptionExtractor:
    """Features of images by Inception v3.

    Args:
      path: of the weights file, for messages and its fingerprint.
      arrays: what it holds.
      batch_size: images computed at a time; fewer are filled up, so that one program serves all. >= 1.

    Attributes:
      kind: "inception".
      layers: those that `features` knows.
      fingerprint: sha256 of the weights file.
    """

    kind = "inception"
    layers = LAYERS

    def __init__(self, path: str, arrays: Mapping[str, np.ndarray], batch_size: int):
        check_count("batch_size", batch_size)
        self._params = params_of(path, arrays)
        self._batch_size = batch_size
        self.fingerprint = sha256_of_file(os.fspath(path))

    def features(
        self, images: UInt8[np.ndarray, "b h w 3"], layers: Sequence[str] = ("2048",)
    ) -> dict[str, Float[np.ndarray, "b _d"]]:
        """Layers of images, resized as TensorFlow 1 does.

        Args:
          images: uint8, of any size.
          layers: names out of LAYERS.

        Raises:
          UserError: the images are no such array, or a layer is unknown.
        """
        check_images(images)
        return in_batches(lambda part: self._run(tf1_bilinear(part, SIZE), tuple(layers)), images, self._batch_size)

    def features_of_resized(
        self, images: Float[np.ndarray, "b 299 299 3"], layers: Sequence[str] = ("2048",)
    ) -> dict[str, Float[np.ndarray, "b _d"]]:
        """Layers of images that another program's filter resized: float32 in [0, 255], not rounded."""
        return in_batches(lambda part: self._run(part, tuple(layers)), images, self._batch_size)

    def _run(self, pixels: Any, layers: tuple[str, ...]) -> dict[str, Array]:
        check_layers(layers, LAYERS)
        return _apply(self._params, pixels, layers)


@functools.partial(jax.jit, static_argnums=2)
def _apply(params: PyTree, pixels: Array, layers: tuple[str, ...]) -> dict[str, Array]:
    # Layers that nobody asked for are not computed: XLA drops what has no use.
    made: Any = Inception().apply({"params": params}, (pixels.astype(jnp.float32) - 128.0) / 128.0)
    return {name: made[name] for name in layers}
