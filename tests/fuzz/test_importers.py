"""Other programs' text encoders: weights, their headers and config.json, and vocabularies of each kind."""

import json
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.text.tokenizer import Tokenizer, train_sentencepiece
from imagen_jax.text.weights.encoder_copy import import_text
from imagen_jax.text.weights.pretrained import open_checkpoint
from tests.fuzz.folders import Folder
from tests.fuzz.mutate import changed, damaged, json_file
from tests.fuzz.running import fuzz

_GOLDEN = Path(__file__).parents[1] / "golden"
_CAPTIONS = ["", "a red cube", "é漢 ½\0\n" * 40]


def _safetensors(chance: random.Random, content: bytes) -> bytes:
    """Another header, of the right length or not, or damage anywhere."""
    if chance.random() < 0.3:
        return damaged(chance, content)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    made = json.dumps(changed(chance, header)).encode()
    stated = len(made) if chance.random() < 0.9 else chance.choice((0, 2**63, len(made) + 8))
    return struct.pack("<Q", stated) + made + content[8 + length :]


def _weights(chance: random.Random, content: bytes) -> bytes:
    return json_file(chance, json.loads(content)) if content.startswith(b"{") else _safetensors(chance, content)


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
    fuzz(pytestconfig, name, lambda chance: folder.spoil(chance, _weights), lambda case: _read_all(tmp_path), share=0.2)


def test_t5x_checkpoints(pytestconfig, tmp_path):
    shutil.copytree(_GOLDEN / "t5_t5x_v1_1" / "checkpoint_1000", tmp_path / "checkpoint_1000")
    folder = Folder(tmp_path / "checkpoint_1000", "checkpoint", 0.7)
    _read_all(tmp_path)
    fuzz(pytestconfig, "t5x", folder.spoil, lambda case: _read_all(tmp_path), share=0.1)


def test_copies_of_encoders(pytestconfig, tmp_path):
    import_text(str(_GOLDEN / "t5_hf_v1_1"), str(tmp_path / "copy"))
    folder = Folder(tmp_path / "copy", "encoder.json", 0.9)
    fuzz(pytestconfig, "encoder.json", folder.spoil, lambda case: _read_all(tmp_path / "copy"), share=0.1)


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
    fuzz(pytestconfig, "-".join([name, *files]), folder.spoil, lambda case: _use(tmp_path), share=0.5)
