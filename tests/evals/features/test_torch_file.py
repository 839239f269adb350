"""The reader of .pth files: the layouts that torch.save writes, made here byte by byte, and what it must refuse."""

import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals.features.torch_file import read_torch_file
from tests.evals.features import torch_files
from tests.evals.features.torch_files import Call, Name, tensor

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1, -2], np.float16),
    "a.steps": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}


def state(old: bool, changes: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    return torch_files.state(ARRAYS, old, changes)


def zipped(content: Any, change: dict[str, bytes | None] | None = None, kind: int = zipfile.ZIP_STORED) -> bytes:
    return torch_files.zipped(ARRAYS, content, change, kind)


def old_layout(content: Any) -> bytes:
    return torch_files.old_layout(ARRAYS, content)


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
