"""Arrays of encoder checkpoints, read a slice at a time: t5x's, Hugging Face's, and our own copies.

A checkpoint of many gigabytes passes through the host in pieces: whoever loads it asks for the slice that a
device needs, and nothing else is held.
"""

import abc
import dataclasses
import functools
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import tensorstore
from flax import serialization
from safetensors import SafetensorError, safe_open

from imagen_jax.errors import UserError, listed
from imagen_jax.files import (
    AnyPath,
    as_path,
    check_content,
    is_file_name,
    kvstore_spec,
    local_copy,
    read_json,
    sha256_of_file,
    size_of,
)

Index = tuple[slice, ...]
T5X_INDEX = "checkpoint"
_HEADER_FORM = {
    "architecture": str,
    "source": str,
    "config": dict,
    "params_sha256": str,
    "shapes": {...: [int]},
    "files": {...: str},
}
COPY_HEADER, COPY_ARRAYS = "encoder.json", "arrays"
# What files of another shape than expected raise when they are taken apart.
_DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
# Those in which t5x and its successors write.
_DRIVERS = ("zarr", "zarr3")
INDEX_FILE, WEIGHTS_FILE = "model.safetensors.index.json", "model.safetensors"


class CheckpointArrays(abc.ABC):
    """Named arrays of one checkpoint.

    Attributes:
      path: where it is.
      shapes: shape of every array.
    """

    path: str
    shapes: Mapping[str, tuple[int, ...]]

    @abc.abstractmethod
    def read(self, name: str, index: Index) -> np.ndarray:
        """One slice of an array, in the dtype it is stored in.

        Raises:
          UserError: a file is missing, truncated or damaged; names it.
        """


class T5xArrays(CheckpointArrays):
    """The `target` of a native t5x checkpoint: a msgpack index beside one zarr array a parameter.

    Names are dotted paths, such as encoder.layers_0.mlp.wo.kernel. The optimizer's state is passed over.

    Args:
      path: a folder checkpoint_N, local or gs://, or one that holds such folders; the newest is taken.

    Raises:
      UserError: there is no index, or it is damaged or of a version that is not known.
    """

    def __init__(self, path: str):
        folder = _newest_step(path)
        self.path = os.fspath(folder)
        index = folder / T5X_INDEX
        try:
            content = serialization.msgpack_restore(index.read_bytes())
            self._version = int(content.get("version", 0))
            target = content["optimizer"]["target"]
            self._leaves = {name: _Stored.of(leaf) if _is_spec(leaf) else leaf for name, leaf in _leaves(target)}
            self.shapes = {name: np.shape(leaf) for name, leaf in self._leaves.items()}
        except (*_DAMAGES, msgpack.UnpackException) as error:
            raise UserError(
                f"{index} is no t5x index ({type(error).__name__}: {_first_line(error)}): expected msgpack with "
                "optimizer/target; copy the checkpoint again"
            ) from error

    def read(self, name: str, index: Index) -> np.ndarray:
        """See CheckpointArrays."""
        leaf = self._leaves[name]
        if not isinstance(leaf, _Stored):
            return np.asarray(leaf)[index]
        try:
            value = self._open(name)[index].read().result()
        except ValueError as error:
            raise UserError(
                f"array {name} of the t5x checkpoint {self.path} cannot be read ({_first_line(error)}); "
                "copy the checkpoint again"
            ) from error
        # Before version 3 bfloat16 stood as its bits (t5x/checkpoints.py).
        return value.view(ml_dtypes.bfloat16) if self._version < 3 and value.dtype == np.uint16 else value

    @functools.cache  # noqa: B019  An instance lives as long as its checkpoint is read.
    def _open(self, name: str) -> tensorstore.TensorStore:
        leaf = self._leaves[name]
        where = {"driver": leaf.driver, "kvstore": kvstore_spec(as_path(self.path) / leaf.folder)}
        store: Any = tensorstore.open(where, open=True, read=True).result()
        expected = self.shapes[name]
        if tuple(store.shape) != expected:
            raise UserError(
                f"array {name} of the t5x checkpoint {self.path} has shape {tuple(store.shape)}; its index says "
                f"{expected}; copy the checkpoint again"
            )
        # A chunk that is not there would read as zeros.
        grid = [
            math.ceil(size / chunk)
            for size, chunk in zip(store.shape, store.chunk_layout.read_chunk.shape, strict=True)
        ]
        there = sum(
            re.fullmatch(r"[0-9]+([./][0-9]+)*", key.decode()) is not None for key in store.kvstore.list().result()
        )
        if there != math.prod(grid):
            raise UserError(
                f"array {name} of the t5x checkpoint {self.path} has {there} of {math.prod(grid)} chunk files; "
                "copy the checkpoint again"
            )
        return store


class SafetensorsArrays(CheckpointArrays):
    """The .safetensors files of a Hugging Face folder: one, or several with an index.

    Args:
      path: the folder.
      weights_file: name of the one file; an index has .index.json behind it.

    Raises:
      UserError: there is none, the index names a file or an array that is not there, or a file is damaged.
    """

    def __init__(self, path: str, weights_file: str = WEIGHTS_FILE):
        self.path = path
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        index = os.path.join(path, f"{weights_file}.index.json")
        places = _read_index(index) if size_of(index) is not None else {}
        held: dict[str, list[str]] = {}
        for file in sorted(set(places.values())) if size_of(index) is not None else [weights_file]:
            for name in self._read_header(file, places):
                held.setdefault(name, []).append(file)
        absent = sorted(name for name, file in places.items() if file not in held.get(name, ()))
        if absent:
            raise UserError(
                f"{index} places {absent[0]} in {places[absent[0]]}, which does not hold it"
                f"{f', nor {len(absent) - 1} others' if len(absent) > 1 else ''}; download the folder again"
            )
        for name, files in held.items():
            if len(files) > 1 and name not in places:
                raise UserError(f"{' and '.join(files)} of {path} both hold {name}; download the folder again")

    def _read_header(self, file: str, places: Mapping[str, str]) -> list[str]:
        """Takes the arrays of a file, but for those that the index places in others; returns the names of all."""
        full = os.path.join(self.path, file)
        if size_of(full) is None:
            raise UserError(f"{self.path} lacks {file}; download it, or give the folder that holds it")
        try:
            here = local_copy(full)
            with safe_open(here, framework="numpy") as tensors:
                names = list(tensors.keys())
                for name in names:
                    if places.get(name, file) == file:
                        self.shapes[name] = tuple(tensors.get_slice(name).get_shape())
                        self._file_of[name] = here
        except (SafetensorError, OSError) as error:
            raise UserError(f"{full} is damaged ({error}); download it again") from error
        return names

    def read(self, name: str, index: Index) -> np.ndarray:
        """See CheckpointArrays."""
        try:
            # Opened anew each time: a mapping that stays open would count its pages as this program's memory.
            with safe_open(self._file_of[name], framework="numpy") as tensors:
                return np.asarray(tensors.get_slice(name)[index])
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self._file_of[name]} cannot be read ({error}); download it again") from error
        except AttributeError as error:  # safetensors looks for the type in NumPy.
            raise UserError(
                f"{name} of {self._file_of[name]} is of a type that NumPy does not have ({error}): give a checkpoint "
                "that is not quantised"
            ) from error


class OrbaxArrays(CheckpointArrays):
    """The arrays of a copy that `import_text` wrote, every file checked against its digest first.

    Args:
      path: the copy's folder.

    Attributes:
      header: encoder.json: sizes, digest of the parameters, files.

    Raises:
      UserError: a file changed since it was written, or is missing.
    """

    def __init__(self, path: str):
        self.path = path
        self.header = read_copy_header(path)
        wrong = [name for name, digest in self.header["files"].items() if self._digest(name) != digest]
        if wrong:
            raise UserError(
                f"the encoder copy {path} is damaged: {', '.join(wrong[:10])} changed or missing; "
                f"write it again with `imagen_jax import_text --from {self.header['source']} --to {path} --overwrite`"
            )
        self.shapes = self.header["shapes"]

    def _digest(self, name: str) -> str | None:
        file = os.path.join(self.path, name)
        return sha256_of_file(file) if size_of(file) is not None else None

    def read(self, name: str, index: Index) -> np.ndarray:
        """See CheckpointArrays."""
        base = kvstore_spec(os.path.join(self.path, COPY_ARRAYS))
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
        try:
            return tensorstore.open(spec, open=True, read=True).result()[index].read().result()
        except (ValueError, IndexError) as error:
            raise UserError(
                f"array {name} of the encoder copy {self.path} cannot be read ({_first_line(error)}); write the copy "
                "again with `imagen_jax import_text`"
            ) from error


def read_copy_header(path: str) -> dict[str, Any]:
    """The encoder.json of a copy, its entries of the kinds that `import_text` writes and its shapes tuples.

    Raises:
      UserError: it is damaged.
    """
    file, fix = os.path.join(path, COPY_HEADER), "the copy is damaged: write it again with `imagen_jax import_text`"
    try:
        header = read_json(file)
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); {fix}") from error
    header = {"architecture": "t5", **header} if isinstance(header, dict) else header
    check_content(file, header, _HEADER_FORM, fix)
    # Digests are of files in the copy.
    wrong = [name for name in header["files"] if os.path.isabs(name) or ".." in name.split("/")]
    if wrong or not header["files"]:
        raise UserError(f"{file} is damaged (files: {listed(wrong) or 'none'}); {fix}")
    return {**header, "shapes": {name: tuple(shape) for name, shape in header["shapes"].items()}}


def is_copy(path: str) -> bool:
    """Tells if a folder is a copy that `import_text` finished."""
    return size_of(os.path.join(path, COPY_HEADER)) is not None


def is_t5x(path: str) -> bool:
    """Tells if a folder is a native t5x checkpoint, or holds some."""
    folder = as_path(path)
    return folder.is_dir() and ((folder / T5X_INDEX).is_file() or bool(_steps(folder)))


def is_safetensors(path: str) -> bool:
    """Tells if a folder holds Hugging Face weights."""
    return any(size_of(os.path.join(path, name)) is not None for name in (INDEX_FILE, WEIGHTS_FILE))


def _steps(folder: AnyPath) -> dict[int, AnyPath]:
    found = ((re.fullmatch(r"checkpoint_([0-9]+)", child.name), child) for child in folder.iterdir())
    return {int(match[1]): child for match, child in found if match and (child / T5X_INDEX).is_file()}


def _newest_step(path: str) -> AnyPath:
    folder = as_path(path)
    if not folder.is_dir():
        raise UserError(f"no t5x checkpoint at {path}: expected a folder with the file {T5X_INDEX}")
    if (folder / T5X_INDEX).is_file():
        return folder
    steps = _steps(folder)
    if not steps:
        raise UserError(f"{path} is no t5x checkpoint: expected the file {T5X_INDEX} in it, or folders checkpoint_N")
    return steps[max(steps)]


def _is_spec(node: Any) -> bool:
    """Tells if a node of the index stands for an array in files of its own."""
    return isinstance(node, dict) and isinstance(node.get("driver"), str)


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, dict) and not _is_spec(node):
        return [leaf for name in node for leaf in _leaves(node[name], f"{prefix}.{name}" if prefix else name)]
    return [(prefix, node)]


@dataclasses.dataclass(frozen=True)
class _Stored:
    """An array in a folder of its own, beside the index.

    Attributes:
      driver: of tensorstore.
      folder: its name.
      shape: as the index says.
    """

    driver: str
    folder: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, spec: dict[str, Any]) -> "_Stored":
        """The array of a tensorstore spec; KeyError, TypeError, ValueError or AttributeError where it is none."""
        while "base" in spec:  # A driver that casts wraps the one that reads.
            spec = spec["base"]
        # tensorstore before 0.1.14 had the path beside.
        path = spec["path"] if "path" in spec else spec["kvstore"]["path"]
        folder, driver = path.strip("/").rpartition("/")[2], spec["driver"]
        if not is_file_name(folder) or driver not in _DRIVERS:
            raise ValueError(f"an array in {path!r} by {driver!r}")
        return cls(driver, folder, _shape(spec["metadata"]["shape"]))


def _shape(sizes: Any) -> tuple[int, ...]:
    """A shape out of a file; ValueError or TypeError where it is none."""
    shape = tuple(sizes)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"shape {sizes!r}")
    return shape


def _read_index(path: str) -> dict[str, str]:
    try:
        places = dict(read_json(path)["weight_map"])
    except _DAMAGES as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); download it again") from error
    for name, file in places.items():
        if not is_file_name(file):
            raise UserError(
                f"{path} places {name} in {file!r}; expected the name of a file in the same folder: download the "
                "folder again"
            )
    return places


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
