"""The reader of .pth files: the layouts that torch.save writes, made here byte by byte, and what it must refuse."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals.features.torch_file import read_torch_file

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1, -2], np.float16),
    "a.steps": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}
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
    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def tensor(key: str, array: np.ndarray, old: bool, **changes: Any) -> Call:
    fields = {"class": CLASSES[array.dtype.name], "count": array.size, "offset": 0, "shape": array.shape}
    fields |= {"strides": tuple(step // array.itemsize for step in array.strides)} | changes
    identity = ("storage", Name(f"torch {fields['class']}"), key, "cpu", fields["count"], *([None] if old else []))
    place = (fields["offset"], fields["shape"], fields["strides"], False, Call(Name("collections OrderedDict")))
    return Call(Name("torch._utils _rebuild_tensor_v2"), Storage(*identity), *place)


def state(old: bool, changes: dict[str, dict[str, Any]] | None = None) -> Any:
    more = changes or {}
    return {name: tensor(str(i), one, old, **more.get(name, {})) for i, (name, one) in enumerate(ARRAYS.items())}


def zipped(content: Any, change: dict[str, bytes | None] | None = None, kind: int = zipfile.ZIP_STORED) -> bytes:
    members = {"root/data.pkl": pickled(content), "root/version": b"3\n", "root/byteorder": b"little"}
    members |= {f"root/data/{i}": one.tobytes() for i, one in enumerate(ARRAYS.values())}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in {**members, **(change or {})}.items():
            if data is not None:
                archive.writestr(name, data)
    return buffer.getvalue()


def old_layout(content: Any) -> bytes:
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}
    parts = [pickled(one) for one in (0x1950A86A20F9469CFC6C, 1001, facts, content, ["3", "1", "0", "2"])]
    arrays = list(ARRAYS.values())
    return b"".join(parts) + b"".join(struct.pack("<q", arrays[i].size) + arrays[i].tobytes() for i in (3, 1, 0, 2))


@pytest.mark.parametrize("old", [False, True])
def test_both_layouts_are_read(old):
    content = state(old)
    content["a.weight"] = Call(Name("torch._utils _rebuild_parameter"), content["a.weight"], True, OrderedDict())
    found = read_torch_file("a.pth", old_layout(content) if old else zipped(content))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(ValueError, match="read-only"):
        found["a.weight"][0, 0] = 1


def test_a_transposed_tensor_is_read():
    found = read_torch_file("a.pth", zipped(state(False, {"a.weight": {"shape": (3, 2), "strides": (1, 3)}})))
    np.testing.assert_array_equal(found["a.weight"], ARRAYS["a.weight"].T)


EVIL = {"x": Call(Name("os system"), "touch pwned")}
DAMAGED = {
    "a call": zipped(EVIL),
    "a call, old layout": old_layout(EVIL),
    "a class": zipped({"x": Name("builtins eval")}),
    "a whole model": zipped(Call(Name("torch.nn.modules.linear Linear"))),
    "a call of a known name": zipped({"x": Call(Name("torch FloatStorage"), 3)}),
    "another opcode": zipped({"x": {1, 2}}),
    "numbers": zipped({"x": 3}),
    "a list": zipped([1]),
    "nothing": zipped({}),
    "a member above": zipped(state(False), {"root/../../etc/passwd": b"x"}),
    "an absolute member": zipped(state(False), {"/root/data/9": b"x"}),
    "another root": zipped(state(False), {"other/data/9": b"x"}),
    "code": zipped(state(False), {"root/code/model.py": b"x"}),
    "compressed": zipped(state(False), kind=zipfile.ZIP_DEFLATED),
    "no pickle": zipped(state(False), {"root/data.pkl": None}),
    "no storage": zipped(state(False), {"root/data/0": None}),
    "a short storage": zipped(state(False), {"root/data/0": b"1234"}),
    "big-endian": zipped(state(False), {"root/byteorder": b"big"}),
    "outside": zipped(state(False, {"a.weight": {"offset": 1}})),
    "much of little": zipped(state(False, {"a.weight": {"shape": (2**20, 2**20), "strides": (0, 0)}})),
    "negative": zipped(state(False, {"a.weight": {"strides": (-3, 1)}})),
    "two kinds": zipped(state(False) | {"b": tensor("0", ARRAYS["a.bias"], False)}),
    "cut zip": zipped(state(False))[:-40],
    "cut": old_layout(state(True))[:-9],
    "cut in the pickle": old_layout(state(True))[:150],
    "text": b"hello, world",
    "empty": b"",
    "a legacy size": old_layout(state(True, {"a.weight": {"count": 5}})),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_all_else_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        read_torch_file("a.pth", DAMAGED[name])
    assert str(error.value).startswith("a.pth cannot be read") and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_refused_name_is_said():
    with pytest.raises(UserError, match=r"it names os\.system"):
        read_torch_file("a.pth", DAMAGED["a call"])


@pytest.mark.parametrize("old", [False, True])
def test_flipped_bytes_give_arrays_or_one_error(old):
    content = old_layout(state(True)) if old else zipped(state(False))
    rng = np.random.default_rng(0)
    for _ in range(1500):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        try:
            assert isinstance(read_torch_file("a.pth", bytes(damaged)), dict)
        except UserError:
            pass
