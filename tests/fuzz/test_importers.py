"""Other programs' text encoders: weights, their headers and config.json, and vocabularies of each kind."""

import json
import math
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.tokenizer import Tokenizer, train_sentencepiece
from imagen_jax.text.weights.encoder_copy import import_text
from imagen_jax.text.weights.pretrained import open_checkpoint
from tests.fuzz.folders import Folder
from tests.fuzz.mutate import changed, damaged, json_file
from tests.fuzz.running import fuzz

_GOLDEN = Path(__file__).parents[1] / "golden"
_CAPTIONS = ["", "a red cube", "é漢 ½\0\n" * 40]


# Bytes of an element, as the format names them.
_DTYPES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
           "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F4": 1, "F99": 4, "f32": 4,
           "": 4}  # fmt: skip


def _safetensors(chance: random.Random, content: bytes) -> bytes:
    """Another header, of the right length or not, one tensor of another type or shape, or damage anywhere."""
    kind = chance.randrange(10)
    if kind < 2:
        return damaged(chance, content)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if kind < 4:
        header = changed(chance, header)
    elif kind < 7:
        data = _another_tensor(chance, header, data)
    elif kind < 9:
        _another_place(chance, header, len(data))
    else:
        header[chance.choice(sorted(header))] = json.loads("[" * (deep := chance.choice((3, 200))) + "]" * deep)
    made = json.dumps(header).encode()
    if chance.random() < 0.05:
        made = b"[" * 100_000
    if chance.random() < 0.1:
        made += b" " * (-len(made) % 8)
    stated = len(made) if chance.random() < 0.9 else chance.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(made) + 8))
    return struct.pack("<Q", stated) + made + data


def _another_tensor(chance: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    """Gives one tensor another type or shape, and the file as many bytes as that needs."""
    names = sorted(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    pieces = {name: data[slice(*header[name]["data_offsets"])] for name in names}
    one = header[name := chance.choice(names)]
    if chance.random() < 0.6:
        one["dtype"] = chance.choice(sorted(_DTYPES))
    else:
        one["shape"] = chance.choice(([], [0], [1, *one["shape"]], [*one["shape"], 1], one["shape"][::-1], [0, 2**40]))
    size = math.prod(one["shape"]) * _DTYPES.get(one["dtype"], 4)
    pieces[name] = (pieces[name] * (size // max(len(pieces[name]), 1) + 1))[:size]
    at = 0
    for name in names:
        header[name]["data_offsets"] = [at, at := at + len(pieces[name])]
    return b"".join(pieces[name] for name in names)


def _another_place(chance: random.Random, header: dict[str, Any], size: int) -> None:
    """Gives one tensor the place of another, or one that is none."""
    names = sorted(header.keys() - {"__metadata__"})
    one, other = header[chance.choice(names)], header[chance.choice(names)]
    begin, end = one["data_offsets"]
    numbers = (0, -1, begin - 4, begin + 4, end + 4, size, size + 4, 2**63, 2**64 - 1, 2**64, 1.5, "0", None)
    kind = chance.randrange(4)
    if kind == 0:
        one["data_offsets"] = list(other["data_offsets"])
    elif kind == 1:
        one["data_offsets"] = [end, begin]
    elif kind == 2:
        one["data_offsets"] = [chance.choice((begin, *numbers)), chance.choice((end, *numbers))]
    else:
        one["shape"] = [chance.choice((*numbers, 2**32, 3)) for _ in one["shape"]]


def _weights(chance: random.Random, content: bytes) -> bytes:
    return json_file(chance, json.loads(content)) if content.startswith(b"{") else _safetensors(chance, content)


def _holds_nothing(folder: Path) -> bool:
    return not folder.exists() and not folder.with_name(f"{folder.name}.partial").exists()


def _read_all(folder: Path) -> None:
    found = open_checkpoint(str(folder))
    for path, source in found.sources.items():
        rank = len(source.shape(found.arrays))
        found.read(path, (slice(0, 1),) * rank, np.float32)


@pytest.mark.parametrize("name", ["t5_hf_v1_1", "clip_hf", "bert_hf"])
def test_hugging_face_folders(pytestconfig, tmp_path, name):
    for file in ("config.json", "model.safetensors"):
        shutil.copy(_GOLDEN / name / file, tmp_path)
    folder = Folder(tmp_path, "config.json", 0.2)
    _read_all(tmp_path)
    fuzz(pytestconfig, name, lambda chance: folder.spoil(chance, _weights), lambda case: _read_all(tmp_path))


@pytest.mark.parametrize("name", ["t5_hf_v1_1", "clip_hf", "bert_hf"])
def test_import_text(pytestconfig, tmp_path, name):
    """A copy is whole, or there is none, and nothing beside it."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(_GOLDEN / name / file, source)
    folder = Folder(source, "config.json", 0.3)

    def make(chance: random.Random) -> tuple[str, bytes]:
        shutil.rmtree(copy, ignore_errors=True)
        return folder.spoil(chance, _weights)

    def attempt(case: tuple[str, bytes]) -> None:
        try:
            import_text(str(source), str(copy))
        except UserError:
            assert _holds_nothing(copy)
            raise
        _read_all(copy)

    fuzz(pytestconfig, f"import_text {name}", make, attempt, writes=tmp_path, share=1 / 3)


def test_import_text_of_several_files(pytestconfig, tmp_path):
    """An index names files of its own folder only."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    content = (_GOLDEN / "t5_hf_v1_1" / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    names = sorted(json.loads(content[8 : 8 + length]).keys() - {"__metadata__"})
    (source / "model-1.safetensors").write_bytes(content)
    for outside in (tmp_path / "x", tmp_path / "model-1.safetensors"):
        outside.write_bytes(content)
    shutil.copy(_GOLDEN / "t5_hf_v1_1" / "config.json", source)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    folder = Folder(source, "model.safetensors.index.json", 1.0)
    odd = (
        "../x",
        "../model-1.safetensors",
        str(tmp_path / "x"),
        "a/../../x",
        "",
        ".",
        "..",
        "config.json",
        "nul\0",
        "é",
    )

    def spoilt(chance: random.Random, content: bytes) -> bytes:
        if chance.random() < 0.5:
            return json_file(chance, index)
        to = chance.choice(odd)
        some = chance.sample(names, chance.choice((1, len(names))))
        return json.dumps({"weight_map": index["weight_map"] | dict.fromkeys(some, to)}).encode()

    def make(chance: random.Random) -> tuple[str, bytes]:
        shutil.rmtree(copy, ignore_errors=True)
        return folder.spoil(chance, spoilt)

    def attempt(case: tuple[str, bytes]) -> None:
        try:
            found = open_checkpoint(str(source))
        except UserError:
            with pytest.raises(UserError):
                import_text(str(source), str(copy))
            assert _holds_nothing(copy)
            raise
        files = json.loads(case[1].decode("utf-8"))["weight_map"].values()
        assert set(files) <= {"model-1.safetensors"}
        assert found.sources

    fuzz(pytestconfig, "index", make, attempt, writes=tmp_path)


def test_t5x_checkpoints(pytestconfig, tmp_path):
    shutil.copytree(_GOLDEN / "t5_t5x_v1_1" / "checkpoint_1000", tmp_path / "checkpoint_1000")
    folder = Folder(tmp_path / "checkpoint_1000", "checkpoint", 0.7)
    _read_all(tmp_path)
    fuzz(pytestconfig, "t5x", folder.spoil, lambda case: _read_all(tmp_path))


def test_copies_of_encoders(pytestconfig, tmp_path):
    import_text(str(_GOLDEN / "t5_hf_v1_1"), str(tmp_path / "copy"))
    folder = Folder(tmp_path / "copy", "encoder.json", 0.9)
    fuzz(pytestconfig, "encoder.json", folder.spoil, lambda case: _read_all(tmp_path / "copy"))


def _use(path: Path) -> None:
    tokenizer = Tokenizer(str(path))
    ids = tokenizer.encode(_CAPTIONS)
    most = max(one for row in (*ids, tokenizer.prefix, tokenizer.suffix, [tokenizer.pad_id]) for one in row)
    assert 0 <= most < tokenizer.vocab_size


@pytest.mark.parametrize(("name", "files"), [
    ("clip_hf", ["tokenizer.json"]), ("bert_hf", ["tokenizer.json"]), ("clip_hf", ["vocab.json", "merges.txt"]),
    ("bert_hf", ["vocab.txt"]), ("", ["spiece.model"]),
], ids=lambda value: value if isinstance(value, str) else "-".join(value))  # fmt: skip
def test_vocabularies(pytestconfig, tmp_path, name, files):
    for file in files:
        if name:
            shutil.copy(_GOLDEN / name / file, tmp_path)
        else:
            train_sentencepiece(["a red cube", "zwei blaue Kugeln"], str(tmp_path / file), 40)
    if files == ["vocab.txt"]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "strip_accents": None}))
    folder = Folder(tmp_path, files[0], 0.5)
    _use(tmp_path)
    fuzz(pytestconfig, "-".join([name, *files]), folder.spoil, lambda case: _use(tmp_path))
