"""Files of someone else, damaged or made to harm: one line says which, and nothing outside their folder is read."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import UserError
from imagen_jax.text import load_encoder
from imagen_jax.text.hugging_face_tokenizer import open_vocabulary
from imagen_jax.text.weights.checkpoint_arrays import INDEX_FILE, SafetensorsArrays
from imagen_jax.text.weights.encoder_copy import import_text

GOLDEN = Path(__file__).parents[2] / "golden"
T5X, HUGGING_FACE = GOLDEN / "t5_t5x_v1_1", GOLDEN / "t5_hf_v1_1"
TENSORS = load_file(HUGGING_FACE / "model.safetensors")
FIRST, *_ = TENSORS
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_encoder(folder)
    assert "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole Hugging Face folder."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(HUGGING_FACE / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", [3, None, ["model.safetensors"], {}, "", ".", "sub/model.safetensors", "a\0b"])
def test_an_index_names_files_beside_it(folder: Path, file: Any) -> None:
    places = dict.fromkeys(TENSORS, "model.safetensors") | {FIRST: file}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    refused(folder, rf"index.json places {FIRST} in .*expected the name of a file in the same folder")


def test_an_array_that_two_files_hold(folder: Path) -> None:
    """The index says which is meant; where it does not, nothing is guessed."""
    other = {name: value for name, value in TENSORS.items() if name != FIRST}
    save_file(other, folder / "a.safetensors")
    save_file({FIRST: TENSORS[FIRST], **{name: value + 1 for name, value in other.items()}}, folder / "b.safetensors")
    places = dict.fromkeys(other, "a.safetensors") | {FIRST: "b.safetensors"}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": places}))
    found = SafetensorsArrays(str(folder))
    assert all(np.array_equal(found.read(name, ()), value) for name, value in TENSORS.items())
    unnamed = {name: file for name, file in places.items() if name in (FIRST, next(iter(other)))}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": unnamed}))
    refused(folder, "a.safetensors and b.safetensors of .* both hold")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": places | {FIRST: "a.safetensors"}}))
    refused(folder, f"places {FIRST} in a.safetensors, which does not hold it")


def test_an_index_leads_nowhere_else(tmp_path: Path) -> None:
    """Files that are there, that would load."""
    inner = tmp_path / "inner"
    inner.mkdir()
    shutil.copy(HUGGING_FACE / "config.json", inner)
    shutil.copy(HUGGING_FACE / "model.safetensors", tmp_path / "outside.safetensors")
    for place in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        (inner / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, place)}))
        refused(inner, "expected the name of a file in the same folder")


@pytest.mark.parametrize("text", ["[1]", '{"weight_map": [1]}', '{"weight_map": "ab"}', "{}", DEEP], ids=range(5))
def test_an_index_of_another_form(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, "index.json is damaged")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("[]", "config.json is damaged"),
        (DEEP, "config.json is damaged .nested too deeply"),
        ({"model_type": ["t5"]}, r"of a \['t5'\] model"),
        ({"layer_norm_epsilon": "x"}, "not the config of a T5 encoder"),
        ({"feed_forward_proj": ["gelu"]}, "not the config of a T5 encoder"),
        ({"num_layers": 10**9}, "has arrays of 2 layers, its config says 1000000000"),
        ({"num_heads": 2**31 - 1}, "is not an encoder of this config, [0-9]+ parameters differ"),
        ({"num_layers": -1}, r"num_layers \(-1\) must be an integer >= 1"),
        ({"vocab_size": 10**30}, "must be at most"),
    ],
    ids=range(9),
)
def test_a_config_of_another_form(folder: Path, changes: Any, message: str) -> None:
    stated = json.loads((folder / "config.json").read_text())
    text = changes if isinstance(changes, str) else json.dumps(stated | changes)
    (folder / "config.json").write_text(text)
    refused(folder, message)


def change_header(file: Path, change: Callable[[dict[str, Any]], Any], length: int | None = None) -> None:
    """Rewrites the header of a .safetensors file; `length`: what the file says of the header's."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    change(header)
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written) if length is None else length) + written + data[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [-4, 100]},
        {"data_offsets": [100, 4]},
        {"data_offsets": [0, 2**62]},
        {"shape": [-1, 2]},
        {"shape": [2**62, 8]},
        {"shape": "ab"},
        {"dtype": "Q7"},
        {"dtype": 3},
    ],
    ids=str,
)
def test_a_header_that_lies(folder: Path, change: dict[str, Any]) -> None:
    change_header(folder / "model.safetensors", lambda header: header[FIRST].update(change))
    refused(folder, "model.safetensors is damaged")


def test_overlapping_arrays_and_lengths_that_lie(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    second = list(TENSORS)[1]
    change_header(file, lambda header: header[second].update(header[FIRST]))
    refused(folder, "model.safetensors is damaged")
    for length in (10, 10**6, 2**63):
        file.write_bytes(data)
        change_header(file, lambda header: None, length)
        refused(folder, "model.safetensors is damaged")
    for part in (data[:-1000], data[:4], b""):
        file.write_bytes(part)
        refused(folder, "model.safetensors is damaged")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (TENSORS | {FIRST: TENSORS[FIRST].astype(np.int32)}, "is of int32; expected floating-point numbers"),
        (TENSORS | {FIRST: TENSORS[FIRST] > 0}, "is of bool; expected floating-point numbers"),
        ({name: value.ravel() for name, value in TENSORS.items()}, "no T5 encoder that can be read"),
    ],
    ids=["integers", "booleans", "flat"],
)
def test_arrays_of_another_kind(folder: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    save_file(arrays, folder / "model.safetensors")
    refused(folder, message)


def test_half_precision_is_read(folder: Path) -> None:
    save_file({name: value.astype(np.float16) for name, value in TENSORS.items()}, folder / "model.safetensors")
    assert load_encoder(folder).params["token_embedder"]["embedding"].dtype == np.float32


def test_a_layer_of_a_huge_number(folder: Path) -> None:
    moved = {name.replace("block.1.", "block.1000000000."): value for name, value in TENSORS.items()}
    save_file(moved, folder / "model.safetensors")
    stated = json.loads((folder / "config.json").read_text()) | {"num_layers": 1_000_000_001}
    (folder / "config.json").write_text(json.dumps(stated))
    refused(folder, "has arrays of 2 layers")


@pytest.mark.parametrize(
    "change",
    [
        {"driver": "json"},
        {"kvstore": {"driver": "gfile", "path": "target.encoder.encoder_norm.scale/.."}},
        {"kvstore": {"driver": "gfile", "path": 3}},
        {"kvstore": 3},
        {"metadata": {}},
        {"metadata": {"shape": "ab"}},
        {"metadata": {"shape": 3}},
        {"metadata": {"shape": [-32]}},
        {"base": 3},
    ],
    ids=str,
)
def test_a_t5x_index_that_lies(tmp_path: Path, change: dict[str, Any]) -> None:
    shutil.copytree(T5X, tmp_path / "c")
    (index,) = (tmp_path / "c").rglob("checkpoint")
    content = serialization.msgpack_restore(index.read_bytes())
    content["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"].update(change)
    index.write_bytes(serialization.msgpack_serialize(content))
    refused(tmp_path / "c", "is no t5x index")


def test_a_t5x_index_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b"\x81\xa1a" * 100_000 + b"\x01")
    refused(tmp_path, "is no t5x index")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {}}, "damaged"),
        ({"files": {"../../x": "0"}}, "damaged"),
        ({"shapes": {"encoder": "ab"}}, "damaged"),
        ({"config": 3}, "damaged"),
        ({"config": {"foo": 1}}, "T5Config cannot be built|no T5 encoder that can be read"),
        ({"source": None}, "damaged"),
        ({"architecture": "gpt"}, "architecture is 'gpt'; expected one of t5, clip, bert"),
        (DEEP, "damaged .*nested too deeply"),
        ("[]", "damaged"),
    ],
    ids=range(9),
)
def test_a_copy_whose_header_lies(tmp_path: Path, change: Any, message: str) -> None:
    import_text(str(HUGGING_FACE), str(tmp_path / "copy"))
    header = tmp_path / "copy" / "encoder.json"
    content = json.loads(header.read_text())
    header.write_text(change if isinstance(change, str) else json.dumps(content | change))
    refused(tmp_path / "copy", message)


def test_a_source_that_breaks_off_leaves_nothing(folder: Path) -> None:
    save_file(TENSORS | {FIRST: TENSORS[FIRST].astype(np.int32)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="is of int32"):
        import_text(str(folder), str(folder / "copy"))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("text", ["{}", "[]", DEEP, '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'])
def test_a_vocabulary_of_another_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="vocabulary"):
        open_vocabulary(str(tmp_path))


@pytest.mark.parametrize("text", ["[]", DEEP, '{"strip_accents": "x"}'], ids=range(3))
def test_settings_of_a_vocabulary_of_another_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        open_vocabulary(str(tmp_path))
