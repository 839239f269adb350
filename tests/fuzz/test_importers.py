"""Other programs' text encoders: weights, their headers and config.json, and vocabularies of each kind."""

import json
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.tokenizer import Tokenizer, train_sentencepiece
from imagen_jax.text.weights.encoder_copy import import_text
from imagen_jax.text.weights.pretrained import open_checkpoint
from tests.fuzz.folders import Folder
from tests.fuzz.mutate import json_file
from tests.fuzz.running import fuzz
from tests.fuzz.tensors import weights

_GOLDEN = Path(__file__).parents[1] / "golden"
_CAPTIONS = ["", "a red cube", "é漢 ½\0\n" * 40]


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
    fuzz(pytestconfig, name, lambda chance: folder.spoil(chance, weights), lambda case: _read_all(tmp_path))


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
        return folder.spoil(chance, weights)

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
