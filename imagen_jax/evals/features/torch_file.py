"""Tensors of PyTorch's .pth files, read as data: nothing in a file is run.

A .pth is a pickle, which can call any function of any module, and tensors' bytes. Here its few opcodes are followed one
by one on a stack of plain values, and the only names that mean anything are those below: an ordered dictionary, a
tensor of a storage, a parameter. Any other name, opcode or call is refused.

PyTorch has written two layouts:

    since 1.6   a zip: ROOT/data.pkl, and ROOT/data/KEY for each storage, none compressed
    before      pickles one after another (a magic number, a version, facts about the machine, the object, the keys of
                the storages), then for each key its number of elements (int64) and their bytes

The Inception weights that FID papers use were published in the second.
"""

import dataclasses
import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from imagen_jax.errors import UserError

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_ORDERED_DICT = "collections OrderedDict"
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_STORAGES: dict[str, Any] = {
    "torch FloatStorage": np.float32,
    "torch DoubleStorage": np.float64,
    "torch HalfStorage": np.float16,
    "torch BFloat16Storage": ml_dtypes.bfloat16,
    "torch LongStorage": np.int64,
    "torch IntStorage": np.int32,
    "torch ShortStorage": np.int16,
    "torch CharStorage": np.int8,
    "torch ByteStorage": np.uint8,
    "torch BoolStorage": np.bool_,
}
_KNOWN = {_ORDERED_DICT, _TENSOR, _PARAMETER, *_STORAGES}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS_AND_TEXT = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Members of the zip besides the storages.
_MEMBERS = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}


class _RefusedError(Exception):
    """A file that is not what it should be; the message is for people."""


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name of the file, which is never looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: Any
    num_elements: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


def read_torch_file(path: str, content: bytes) -> dict[str, np.ndarray]:
    """Named arrays of a state dict.

    Args:
      path: of the file, for messages.
      content: its bytes.

    Returns:
      Views of the file's bytes, which cannot be written to.

    Raises:
      UserError: it is damaged, or holds anything but tensors by name.
    """
    try:
        if content[:2] == b"PK":
            return _read_zip(content)
        return _read_pickles(content)
    except _RefusedError as error:
        problem = str(error)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, struct.error, EOFError) as error:
        problem = f"it is damaged ({error or type(error).__name__})"
    raise UserError(
        f"{path} cannot be read as PyTorch tensors: {problem}; download it again, or save the state dict as "
        ".safetensors or .npz under the same names"
    )


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        root = members[0].filename.partition("/")[0] if members else ""
        names: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            top, _, name = member.filename.partition("/")
            if top != root or name in names or not (name in _MEMBERS or re.fullmatch(r"data/[0-9]+", name)):
                raise _RefusedError(f"its member {member.filename!r} is out of place")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(content):
                raise _RefusedError(f"its member {member.filename!r} is compressed, which PyTorch does not do")
            names[name] = member
        if "data.pkl" not in names:
            raise _RefusedError("it is a zip without data.pkl")
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise _RefusedError("its numbers are not little-endian")
        found = _follow(io.BytesIO(archive.read(names["data.pkl"])))

        def read(storage: _Storage) -> tuple[bytes, int]:
            if f"data/{storage.key}" not in names:
                raise _RefusedError(f"it lacks the storage {storage.key}")
            data = archive.read(names[f"data/{storage.key}"])
            if len(data) != storage.num_elements * np.dtype(storage.dtype).itemsize:
                raise _RefusedError(f"its storage {storage.key} has {len(data)} bytes, not those of its elements")
            return data, 0

        return _arrays(found, read)


def _read_pickles(content: bytes) -> dict[str, np.ndarray]:
    stream = io.BytesIO(content)
    if _follow(stream) != _MAGIC or _follow(stream) != _VERSION:
        raise _RefusedError("it does not begin as a file of torch.save")
    facts = _follow(stream)
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise _RefusedError("its numbers are not little-endian")
    found = _follow(stream)
    keys = _follow(stream)
    tensors = _tensors(found)
    sizes = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise _RefusedError("its list of storages is damaged")
    places = {}
    for key in keys:
        header = stream.read(8)
        storage = sizes.get(key)
        if storage is None or len(header) < 8 or struct.unpack("<q", header)[0] != storage.num_elements:
            raise _RefusedError(f"its storage {key} is cut, or not of the size that its tensors say")
        places[key] = stream.tell()
        if stream.seek(storage.num_elements * np.dtype(storage.dtype).itemsize, io.SEEK_CUR) > len(content):
            raise _RefusedError(f"its storage {key} is cut")

    def read(storage: _Storage) -> tuple[bytes, int]:
        if storage.key not in places:
            raise _RefusedError(f"it lacks the storage {storage.key}")
        return content, places[storage.key]

    return _arrays(found, read)


def _tensors(found: Any) -> Mapping[str, _Tensor]:
    if not isinstance(found, dict) or not found:
        raise _RefusedError("it holds no dictionary of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _RefusedError(f"it holds {str(name)[:80]!r}, which is no tensor by name")
    return found


def _arrays(found: Any, read: Callable[[_Storage], tuple[bytes, int]]) -> dict[str, np.ndarray]:
    flat: dict[str, tuple[_Storage, np.ndarray]] = {}
    arrays = {}
    for name, tensor in _tensors(found).items():
        storage = tensor.storage
        if storage.key not in flat:
            data, start = read(storage)
            flat[storage.key] = storage, np.frombuffer(data, storage.dtype, storage.num_elements, start)
        known, elements = flat[storage.key]
        if known != storage:
            raise _RefusedError(f"its storage {storage.key} is said to be of two kinds")
        last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
        count = math.prod(tensor.shape)
        # A stride of 0 would make much of little.
        if count and (last >= storage.num_elements or count > storage.num_elements):
            raise _RefusedError(f"{name} lies outside its storage")
        steps = tuple(step * elements.itemsize for step in tensor.strides)
        start_of = elements[tensor.offset :] if count else elements[:0]
        arrays[name] = np.lib.stride_tricks.as_strided(start_of, tensor.shape, steps, writeable=False)
    return arrays


def _follow(stream: io.BytesIO) -> Any:
    """The value of the next pickle of a stream."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STOP":
            return machine.result()
        machine.step(opcode.name, argument)
    raise _RefusedError("its pickle has no end")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        """The one value that is left."""
        if len(self._stack) != 1:
            raise _RefusedError("its pickle is damaged")
        return self._stack[0]

    def step(self, name: str, argument: Any) -> None:
        """Follows one opcode."""
        push = self._stack.append
        if name in ("PROTO", "FRAME"):
            pass
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _NUMBERS_AND_TEXT:
            push(argument)
        elif name == "MARK":
            push(_MARK)
        elif name == "EMPTY_DICT":
            push({})
        elif name == "EMPTY_LIST":
            push([])
        elif name in _TUPLES:
            push(tuple(self._popped(_TUPLES[name])))
        elif name == "TUPLE":
            push(tuple(self._to_mark()))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise _RefusedError("its pickle is damaged")
            push(self._memo[argument])
        elif name == "GLOBAL":
            if argument not in _KNOWN:
                raise _RefusedError(f"it names {argument.replace(' ', '.')[:80]}, and only tensors are read")
            push(_Global(argument))
        elif name == "BINPERSID":
            push(_storage(*self._popped(1)))
        elif name == "REDUCE":
            push(_called(*self._popped(2)))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._popped(2) if name == "SETITEM" else self._to_mark()
            self._fill(items)
        elif name in ("APPEND", "APPENDS"):
            items = self._popped(1) if name == "APPEND" else self._to_mark()
            if not isinstance(self._top(), list):
                raise _RefusedError("its pickle is damaged")
            self._top().extend(items)
        elif name == "BUILD":
            # Facts about the modules that the tensors are of.
            self._popped(1)
            if not isinstance(self._top(), dict):
                raise _RefusedError("it sets the state of what is no dictionary")
        else:
            raise _RefusedError(f"its pickle has the opcode {name}, and only tensors are read")

    def _fill(self, items: list[Any]) -> None:
        table = self._top()
        if not isinstance(table, dict) or len(items) % 2:
            raise _RefusedError("its pickle is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise _RefusedError("a key of its dictionaries is no text")
            table[key] = value

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _RefusedError("its pickle is damaged")
        return self._stack[-1]

    def _popped(self, count: int) -> list[Any]:
        values = self._stack[len(self._stack) - count :] if len(self._stack) >= count else [_MARK]
        if any(value is _MARK for value in values):
            raise _RefusedError("its pickle is damaged")
        del self._stack[len(self._stack) - count :]
        return values

    def _to_mark(self) -> list[Any]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                values = self._stack[place + 1 :]
                del self._stack[place:]
                return values
        raise _RefusedError("its pickle is damaged")


def _storage(identity: Any) -> _Storage:
    """The storage of a persistent id: ("storage", class, key, device, elements), in old files with None at its end."""
    damaged = _RefusedError("a storage of it is damaged")
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or any(one is not None for one in identity[5:]):
        raise damaged
    kind, storage_class, key, _, count = identity[:5]
    if kind != "storage" or not isinstance(storage_class, _Global) or storage_class.name not in _STORAGES:
        raise damaged
    if not isinstance(key, str) or not _is_size(count):
        raise damaged
    return _Storage(key, _STORAGES[storage_class.name], count)


def _called(function: Any, arguments: Any) -> Any:
    """The value of one of the three calls that are known."""
    name = function.name if isinstance(function, _Global) else ""
    if name == _ORDERED_DICT and arguments == ():
        return {}
    if name == _PARAMETER and isinstance(arguments, tuple) and arguments and isinstance(arguments[0], _Tensor):
        return arguments[0]
    if name == _TENSOR and isinstance(arguments, tuple) and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        sound = isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
        if sound and len(shape) == len(strides) and all(map(_is_size, (offset, *shape, *strides))):
            return _Tensor(storage, offset, shape, strides)
    raise _RefusedError(f"it calls {name or 'what is no function'}, not as a tensor is made")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48
