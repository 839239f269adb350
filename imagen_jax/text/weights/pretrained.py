"""Encoders from checkpoints: a t5x checkpoint, a Hugging Face folder, or the copy that `import_text` writes.

Parameters stream onto their devices: for each device the slice that it holds is read, cast and put there, one
parameter after the other, so the host never holds more than one parameter besides.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError, listed
from imagen_jax.files import installed_path
from imagen_jax.sharding import rules
from imagen_jax.text.encoders.config import EncoderConfig
from imagen_jax.text.encoders.t5_params import STACKED, dotted
from imagen_jax.text.weights import families, t5_weights
from imagen_jax.text.weights.checkpoint_arrays import (
    CheckpointArrays,
    Index,
    OrbaxArrays,
    SafetensorsArrays,
    T5xArrays,
    is_copy,
    is_safetensors,
    is_t5x,
)
from imagen_jax.text.weights.sources import Source, layer_of, layers_of
from imagen_jax.typing import Array, Float, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A frozen encoder from a checkpoint, as a run's config names it.

    Args:
      path: what `load_encoder` takes.
      sizes: of the encoder, and its dtype: a T5Config, CLIPConfig or BertConfig; None infers them, in float32.
      first_layers: encode with the first layers alone, so many; None: all. `sizes` then says how many are used.
    """

    path: str
    sizes: EncoderConfig | None = None
    first_layers: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise UserError(f"Pretrained.path must be the folder of a checkpoint; got {self.path!r}")
        if self.sizes is not None and not isinstance(self.sizes, EncoderConfig):
            raise UserError(f"Pretrained.sizes must be a T5Config, CLIPConfig, BertConfig or None; got {self.sizes!r}")
        if self.first_layers is not None:
            check_count("Pretrained.first_layers", self.first_layers)
            if self.sizes is not None and self.sizes.num_layers != self.first_layers:
                raise UserError(
                    f"Pretrained.first_layers ({self.first_layers}) and the num_layers of its sizes "
                    f"({self.sizes.num_layers}) must be equal; set both to the number of layers to use"
                )

    def config(self) -> EncoderConfig:
        """Sizes of the encoder; reads no parameters.

        Raises:
          UserError: see `load_encoder`.
        """
        return self.sizes or open_checkpoint(self.path, first_layers=self.first_layers).config


class LoadedEncoder:
    """A frozen text encoder with its parameters on their devices.

    Attributes:
      config: its sizes.
      params: its parameters, in t5x's names.
    """

    def __init__(self, config: EncoderConfig, params: PyTree, mesh: Mesh | None = None):
        self.config = config
        self.params = params
        self._batch = None if mesh is None else rules.batch_sharding(mesh)
        self._ways = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        self._apply = _jit_apply(config)

    def encode(self, token_ids: Any, mask: Any) -> Float[Array, "b n d"]:
        """Token embeddings, float32.

        Args:
          token_ids: integers (b, n), of the encoder's vocabulary.
          mask: (b, n), True or 1 at unpadded tokens; embeddings elsewhere carry no meaning.

        Raises:
          UserError: an id is not in the vocabulary, the shapes differ, or there are more tokens than positions.
        """
        ids, mask = np.asarray(token_ids), np.asarray(mask) > 0
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise UserError(f"token_ids and mask must both be (b, n); got {ids.shape} and {mask.shape}")
        check_ids(ids, self.config.vocab_size)
        check_positions(ids.shape[1], self.config, "token_ids are too long")
        # Devices take equal numbers of rows.
        fill = ((0, -ids.shape[0] % self._ways), (0, 0))
        rows = jax.device_put((np.pad(ids.astype(np.int32), fill), np.pad(mask, fill)), self._batch)
        return self._apply(self.params, *rows)[: ids.shape[0]]


def _jit_apply(config: EncoderConfig) -> jax.stages.Wrapped:
    module = config.network()
    return jax.jit(lambda params, tokens, mask: module.apply({"params": params}, tokens, mask))


def abstract_encoder(
    config: EncoderConfig, mesh: Mesh, rows: int, length: int
) -> tuple[jax.stages.Wrapped, PyTree, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Program and abstract arguments of `LoadedEncoder.encode`, to be compiled ahead of time.

    Args:
      config: sizes.
      mesh: devices, of any platform, also ones that are not here.
      rows, length: of a batch of token ids.

    Returns:
      The program, and its params, token ids and mask with their shardings: `apply.lower(params, ids, mask)`.
    """
    boxed = _abstract(config)
    shaped = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        meta.unbox(boxed),
        rules.param_shardings(boxed, mesh),
    )
    ids, mask = (
        jax.ShapeDtypeStruct((rows, length), dtype, sharding=rules.batch_sharding(mesh)) for dtype in (jnp.int32, bool)
    )
    return _jit_apply(config), shaped, ids, mask


def check_ids(ids: np.ndarray, vocab_size: int) -> None:
    """Refuses ids that the encoder has no embedding for.

    Raises:
      UserError: names one.
    """
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if wrong.size:
        raise UserError(
            f"token id {wrong[0]} is not in the encoder's vocabulary of {vocab_size}: the vocabulary belongs to "
            "another encoder; use the one that came with this checkpoint"
        )


def check_positions(length: int, config: EncoderConfig, what: str) -> None:
    """Refuses more tokens than the encoder has positions for.

    Args:
      length: tokens.
      config: of the encoder.
      what: names the length in the message.

    Raises:
      UserError: length exceeds config.max_positions.
    """
    if config.max_positions is not None and length > config.max_positions:
        raise UserError(
            f"{what} ({length}), but the encoder has positions for {config.max_positions} tokens; choose at most "
            f"{config.max_positions}, or an encoder without such a bound, as T5"
        )


def load_encoder(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    config: EncoderConfig | None = None,
    mesh: Mesh | None = None,
    first_layers: int | None = None,
) -> LoadedEncoder:
    """Loads a T5, CLIP text or BERT encoder: those that Imagen compares (section 2.1, appendix D.1).

    Args:
      path: a native t5x checkpoint (local or gs://; a run's newest when it holds several), a Hugging Face folder
        with config.json and .safetensors files of a T5, CLIP or BERT model, or a copy written by `import_text`;
        "package:NAME/FOLDER" is such a folder inside an installed Python package.
      dtype: of computation and of the matrices held, "float32" or "bfloat16"; None is the config's ("float32"
        where there is no config). Norms are held in float32.
      config: sizes; None infers them from the shapes and from config.json; a t5x checkpoint has no such file, and
        T5's standard values are taken for what the shapes do not tell.
      mesh: devices to shard the parameters and the rows of a batch over; None is the first local device.
      first_layers: see `Pretrained`.

    Raises:
      UserError: there is no such checkpoint, it is damaged or has no encoder, or its parameters are not those
        of `config`; every one that differs is named.
    """
    source = open_checkpoint(os.fspath(path), config, first_layers)
    config = source.config if dtype is None else source.config.replaced(dtype=jnp.dtype(dtype).name)
    return LoadedEncoder(config, _to_devices(dataclasses.replace(source, config=config), mesh), mesh)


@dataclasses.dataclass(frozen=True)
class EncoderCheckpoint:
    """A checkpoint whose parameters were found, none of them read yet.

    Attributes:
      config: sizes.
      arrays: the checkpoint's arrays.
      sources: parameter by dotted path, layers apart → where it comes from.
    """

    config: EncoderConfig
    arrays: CheckpointArrays
    sources: Mapping[str, Source]

    def read(self, path: str, index: Index, dtype: Any) -> np.ndarray:
        """A slice of a parameter.

        Raises:
          UserError: see CheckpointArrays.read; or the array holds no floating-point numbers.
        """
        value = self.sources[path].read(self.arrays, index)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(
                f"array {self.sources[path].name} of {self.arrays.path} is of {value.dtype}; expected floating-point "
                "numbers: give a checkpoint that is not quantised"
            )
        return value.astype(dtype)


def open_checkpoint(
    path: str, config: EncoderConfig | None = None, first_layers: int | None = None
) -> EncoderCheckpoint:
    """Finds out what a checkpoint is and that it holds an encoder of `config` (inferred when None).

    Args:
      path: see `load_encoder`.
      config: sizes of what is used.
      first_layers: see `Pretrained`.

    Raises:
      UserError: see `load_encoder`.
    """
    path = installed_path(path)
    arrays: CheckpointArrays
    stated: dict[str, Any] = {}
    if is_copy(path):
        arrays = OrbaxArrays(path)
        family = families.of_architecture(arrays.header["architecture"])
        sources, stated = {name: Source(name) for name in arrays.shapes}, arrays.header["config"]
    elif is_t5x(path):
        family, arrays = families.T5, T5xArrays(path)
        sources = t5_weights.t5x_sources(arrays)
    elif is_safetensors(path):
        arrays = SafetensorsArrays(path)
        family, stated = families.of_folder(path)
        sources = family.sources(arrays)
    else:
        raise UserError(
            f"no encoder at {path}: expected a t5x checkpoint (a folder with the file `checkpoint`), a Hugging Face "
            "folder with .safetensors files, or a copy written by `imagen_jax import_text`"
        )
    if config is None:
        config = _config(path, family, arrays, sources, stated)
    elif not isinstance(config, family.config):
        raise UserError(
            f"{path} holds a {family.name} encoder, but the config is a {type(config).__name__}; give a "
            f"{family.config.__name__}, or leave it out to infer it"
        )
    if first_layers is not None:
        config, sources = _first_layers(path, config, sources, first_layers)
    found = EncoderCheckpoint(config, arrays, sources)
    _check(found)
    return found


def _first_layers(
    path: str, config: EncoderConfig, sources: dict[str, Source], number: int
) -> tuple[EncoderConfig, dict[str, Source]]:
    """Config and sources without the layers from `number` on."""
    there = len(layers_of(sources))
    if config.architecture == "clip":
        raise UserError(
            f"Pretrained.first_layers ({number}) is for T5 and BERT; {path} is a CLIP, whose embeddings are those of "
            "the last layer but one: leave it out"
        )
    if number > there:
        raise UserError(f"Pretrained.first_layers ({number}) is more than {path} has; choose at most {there}")
    kept = {name: source for name, source in sources.items() if (layer_of(name) or 0) < number}
    return config.replaced(num_layers=number), kept


def _config(
    path: str,
    family: families.Family,
    arrays: CheckpointArrays,
    sources: Mapping[str, Source],
    stated: Mapping[str, Any],
) -> EncoderConfig:
    """The config that a checkpoint states, and its shapes where it is silent."""
    try:
        inferred = {} if is_copy(path) else family.infer(arrays, sources)
        return family.config.from_json({**inferred, **stated})
    except UserError:
        raise
    # Arrays of other ranks than expected; fields that there are not.
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise UserError(
            f"{path} holds no {family.name} encoder that can be read ({type(error).__name__}: {error}); download or "
            "copy it again"
        ) from error


def _check(checkpoint: EncoderCheckpoint) -> None:
    """Refuses a checkpoint that lacks a parameter of its config, or has one of another shape."""
    found = len(layers_of(checkpoint.sources))
    # Every layer is traced, however many a damaged file says. What a few lack is named below; CLIP's last is not read.
    if checkpoint.config.num_layers > found + 4:
        raise UserError(
            f"{checkpoint.arrays.path} has arrays of {found} layers, its config says {checkpoint.config.num_layers}; "
            "give the config that belongs to it, or download it again"
        )
    apart = checkpoint.config.replaced(scan_layers=False)
    wanted = {path: leaf.shape for path, leaf in held_dtypes(apart).items()}
    got = {path: source.shape(checkpoint.arrays) for path, source in checkpoint.sources.items()}
    lines = [
        f"{path}: got {got.get(path, 'nothing')}, expected {wanted.get(path, 'nothing')}"
        for path in sorted(wanted.keys() | got.keys())
        if got.get(path) != wanted.get(path)
    ]
    if lines:
        raise UserError(
            f"{checkpoint.arrays.path} is not an encoder of this config, {len(lines)} parameters differ: "
            f"{listed(lines)}; give the config that belongs to it, or leave it out to infer it from the shapes"
        )


def held_dtypes(config: EncoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter by dotted path, as `load_encoder` holds them."""
    return dict(dotted(meta.unbox(_abstract(config))))


@functools.cache
def _abstract(config: EncoderConfig) -> PyTree:
    """Parameters with logical names; norms, biases and position biases float32, matrices in the compute dtype."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2), jnp.bool_)
    params = jax.eval_shape(config.network().init, jax.random.key(0), tokens, mask)["params"]

    def typed(path: Any, leaf: Any) -> Any:
        exact = jax.tree_util.keystr(path).endswith(("['scale']", "['bias']", "['rel_embedding']"))
        held = jnp.float32 if exact else config.dtype
        return leaf.replace(value=jax.ShapeDtypeStruct(leaf.value.shape, held))

    return jax.tree_util.tree_map_with_path(typed, params, is_leaf=rules.is_boxed)


def _to_devices(checkpoint: EncoderCheckpoint, mesh: Mesh | None) -> PyTree:
    boxed = _abstract(checkpoint.config)
    abstract, tree = jax.tree.flatten(meta.unbox(boxed))
    if mesh is None:
        one = SingleDeviceSharding(jax.local_devices()[0])
        shardings: list[Any] = [one] * len(abstract)
    else:
        shardings = jax.tree.leaves(rules.param_shardings(boxed, mesh))
    paths = [path for path, _ in dotted(meta.unbox(boxed))]
    leaves = []
    for path, leaf, sharding in zip(paths, abstract, shardings, strict=True):
        place = _place_layers if STACKED in path else _place
        leaves.append(place(checkpoint, path, leaf, sharding).block_until_ready())
    return jax.tree.unflatten(tree, leaves)


def _place(checkpoint: EncoderCheckpoint, path: str, leaf: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
    # Replicas ask for the same slice once each.
    read = functools.lru_cache(maxsize=1)(functools.partial(_read, checkpoint, path, leaf))
    return jax.make_array_from_callback(leaf.shape, sharding, functools.partial(_by_key, read))


def _place_layers(
    checkpoint: EncoderCheckpoint, path: str, leaf: jax.ShapeDtypeStruct, sharding: Sharding
) -> jax.Array:
    """Stacks layers on their devices, one after the other: together they may be larger than the host."""
    one = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    apart = sharding
    if isinstance(sharding, NamedSharding):
        apart = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    stack = jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=sharding)()
    put = jax.jit(jax.lax.dynamic_update_index_in_dim, static_argnums=3, donate_argnums=0, out_shardings=sharding)
    for layer in range(leaf.shape[0]):
        stack = put(stack, _place(checkpoint, path.replace(STACKED, f".layers_{layer}."), one, apart), layer, 0)
    return stack


def _by_key(read: Callable[[Any], np.ndarray], index: Index) -> np.ndarray:
    # Slices are no keys of a cache before Python 3.12.
    return read(tuple((part.start, part.stop) for part in index))


def _read(checkpoint: EncoderCheckpoint, path: str, leaf: Any, key: Any) -> np.ndarray:
    index = tuple(slice(*slice(*ends).indices(size)) for ends, size in zip(key, leaf.shape, strict=True))
    return checkpoint.read(path, index, leaf.dtype)
