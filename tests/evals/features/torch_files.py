"""Writes .pth files byte by byte, in both layouts of torch.save, sound or not."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

CLASSES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class Name:
    """Pickles as a module's name, whether or not the module is here."""

    def __init__(self, name: str):
        self.name = name


class Call:
    """Pickles as a call."""

    def __init__(self, function: Name, *arguments: Any):
        self.function, self.arguments = function, arguments


class Storage:
    """Pickles as a persistent id."""

    def __init__(self, *identity: Any):
        self.identity = identity


class Writer(pickle._Pickler):  # type: ignore[name-defined,misc]  # The one in Python: names are written as they come.
    """Writes the names, calls and storages above."""

    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, Storage) else None

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Name):
            self.write(b"c" + value.name.replace(" ", "\n").encode() + b"\n")
        elif isinstance(value, Call):
            self.save(value.function)
            self.save(value.arguments)
            self.write(b"R")
        else:
            super().save(value, save_persistent_id)


def pickled(value: Any) -> bytes:
    """One pickle of protocol 2."""
    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def tensor(key: str, array: np.ndarray, old: bool, **changes: Any) -> Call:
    """A tensor of the storage `key`; `changes` of class, count, offset, shape, strides."""
    fields = {"class": CLASSES[array.dtype.name], "count": array.size, "offset": 0, "shape": array.shape}
    fields |= {"strides": tuple(step // array.itemsize for step in array.strides)} | changes
    identity = ("storage", Name(f"torch {fields['class']}"), key, "cpu", fields["count"], *([None] if old else []))
    place = (fields["offset"], fields["shape"], fields["strides"], False, Call(Name("collections OrderedDict")))
    return Call(Name("torch._utils _rebuild_tensor_v2"), Storage(*identity), *place)


def state(
    arrays: Mapping[str, np.ndarray], old: bool, changes: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """A state dict; `changes` of fields of single tensors, see `tensor`."""
    more = changes or {}
    return {name: tensor(str(i), one, old, **more.get(name, {})) for i, (name, one) in enumerate(arrays.items())}


def zipped(
    arrays: Mapping[str, np.ndarray],
    content: Any,
    change: Mapping[str, bytes | None] | None = None,
    kind: int = zipfile.ZIP_STORED,
) -> bytes:
    """A file of today: `content` and the arrays' bytes; `change` gives members other bytes, or takes them out."""
    members = {"root/data.pkl": pickled(content), "root/version": b"3\n", "root/byteorder": b"little"}
    members |= {f"root/data/{i}": one.tobytes() for i, one in enumerate(arrays.values())}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in {**members, **(change or {})}.items():
            if data is not None:
                archive.writestr(name, data)
    return buffer.getvalue()


def old_layout(arrays: Mapping[str, np.ndarray], content: Any) -> bytes:
    """A file as before torch 1.6; its storages stand in reverse order."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}
    keys = [str(i) for i in reversed(range(len(arrays)))]
    parts = [pickled(one) for one in (0x1950A86A20F9469CFC6C, 1001, facts, content, keys)]
    rows = reversed(arrays.values())
    return b"".join(parts) + b"".join(struct.pack("<q", one.size) + one.tobytes() for one in rows)
