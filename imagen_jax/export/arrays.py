"""Parameters in .safetensors files: written in parts of a given size, read once and hashed while they are read.

A file is 8 bytes (length of the header), a header in JSON (name → dtype, shape, offsets of the first byte and of the
byte after the last), and the arrays one after the other
(https://huggingface.co/docs/safetensors, "Format"). The arrays that are read are views of the bytes that were hashed.
"""

import concurrent.futures
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from imagen_jax.checkpoints.trees import named_leaves
from imagen_jax.errors import UserError
from imagen_jax.typing import PyTree

DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "I32": np.int32,
    "I8": np.int8,
}
_CHUNK = 16 << 20
_LONGEST_HEADER = 100 << 20
_METADATA = "__metadata__"
FIX = "the bundle is damaged: copy it again, or export it anew"


def flat(params: PyTree) -> dict[str, np.ndarray]:
    """Parameters by their dotted names.

    Raises:
      UserError: a name holds a dot, or an array's dtype has no place in a bundle.
    """
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    if named_leaves(nested(leaves)).keys() != leaves.keys() or _depths(params) != _depths(nested(leaves)):
        raise UserError("a parameter's name holds a dot, which a bundle cannot keep; rename that part of the network")
    for name, leaf in leaves.items():
        if leaf.dtype not in [np.dtype(known) for known in DTYPES.values()]:
            raise UserError(f"parameter {name} is of type {leaf.dtype}; a bundle holds {', '.join(DTYPES)}")
    return leaves


def _depths(tree: PyTree) -> list[int]:
    return [1 + max(_depths(one), default=0) for one in tree.values()] if isinstance(tree, Mapping) else []


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of parameters that `flat` gave the names of.

    Raises:
      UserError: a name is that of an array and of a part of the network.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"parameter {path} lies within another parameter; {FIX}")
        if last in node:
            raise UserError(f"parameter {path} is there twice; {FIX}")
        node[last] = leaf
    return tree


def write_arrays(folder: str, leaves: Mapping[str, np.ndarray], max_bytes: int) -> list[str]:
    """Writes parameters as params-00001-of-0000N.safetensors.

    Args:
      folder: of this machine.
      leaves: arrays by name.
      max_bytes: of arrays in one file; an array that is larger has a file of its own.

    Returns:
      Names of the files.
    """
    parts: list[dict[str, np.ndarray]] = [{}]
    for name, leaf in leaves.items():
        if parts[-1] and sum(one.nbytes for one in parts[-1].values()) + leaf.nbytes > max_bytes:
            parts.append({})
        parts[-1][name] = np.ascontiguousarray(leaf).reshape(leaf.shape)
    names = [f"params-{number + 1:05}-of-{len(parts):05}.safetensors" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        save_file(part, os.path.join(folder, name))
    return names


def read_hashed(paths: Sequence[str]) -> list[tuple[np.ndarray, str]]:
    """Bytes and SHA-256 of each file, several at once; each byte is read once.

    Raises:
      OSError: a file cannot be read.
    """
    workers = os.cpu_count() or 1
    with (
        concurrent.futures.ThreadPoolExecutor(workers) as files,
        concurrent.futures.ThreadPoolExecutor(workers) as sums,
    ):
        return list(files.map(lambda path: _read_hashed(path, sums), paths))


def _read_hashed(path: str, sums: concurrent.futures.Executor) -> tuple[np.ndarray, str]:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        content = np.empty(os.fstat(file.fileno()).st_size, np.uint8)
        view = memoryview(cast(Any, content))
        hashed: concurrent.futures.Future[None] | None = None
        done = 0
        while done < content.size:
            count = file.readinto(view[done : done + _CHUNK])
            if not count:
                raise OSError(f"{path} became shorter while it was read")
            if hashed is not None:
                hashed.result()
            # One piece is hashed while the next is read.
            hashed = sums.submit(digest.update, view[done : done + count])
            done += count
        if hashed is not None:
            hashed.result()
    return content, digest.hexdigest()


def parse_arrays(path: str, content: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file, as views of its bytes.

    Args:
      path: the file, for messages.
      content: its bytes, uint8.

    Raises:
      UserError: the header is damaged, or says what the bytes do not hold.
    """
    try:
        return _parse(content)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} has a header that its bytes do not fit ({error}); {FIX}") from error


def parse_metadata(content: np.ndarray) -> dict[str, str]:
    """The texts in the header of a .safetensors file that `parse_arrays` took."""
    length = int.from_bytes(content[:8].tobytes(), "little")
    found = json.loads(content[8 : 8 + length].tobytes()).get(_METADATA)
    return {str(name): str(text) for name, text in found.items()} if isinstance(found, dict) else {}


def _parse(content: np.ndarray) -> dict[str, np.ndarray]:
    length = int.from_bytes(content[:8].tobytes(), "little")
    if content.size < 8 or length > min(content.size - 8, _LONGEST_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {content.size}")
    header = json.loads(content[8 : 8 + length].tobytes().decode())
    header.pop(_METADATA, None)
    data = content[8 + length :]
    arrays, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        shape, dtype = entry["shape"], np.dtype(DTYPES[entry["dtype"]])
        if not all(type(one) is int and one >= 0 for one in (*shape, start, stop)):
            raise ValueError(f"{name} has a shape or offsets that are no counts")
        if start != end or stop > data.size or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {shape} and type {dtype} at bytes {start} to {stop} of {data.size}")
        arrays[name] = data[start:stop].view(dtype).reshape(shape)
        end = stop
    if end != data.size:
        raise ValueError(f"arrays of {end} bytes, but {data.size} are there")
    return arrays
