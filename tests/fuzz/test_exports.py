"""Exports and imports of trained parts: bundles, LoRAs in PEFT's form and their notes, files of learned words, folders
of DeepFloyd IF."""

import functools
import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.export import arrays, bundle
from imagen_jax.files import is_remote, sha256_of_file
from imagen_jax.finetune import lora, source, words
from imagen_jax.finetune.lora import LoraConfig
from imagen_jax.finetune.loras import Lora, with_loras
from imagen_jax.finetune.peft import ARRAYS, read_peft, write_peft
from imagen_jax.finetune.source import LoraRecord, Source
from imagen_jax.interop import if_stage
from imagen_jax.sharding.rules import unbox
from imagen_jax.text.inversion import LearnedWord
from tests.fuzz.folders import Folder
from tests.fuzz.mutate import json_file
from tests.fuzz.running import fuzz
from tests.fuzz.tensors import safetensors, weights
from tests.untrained import untrained_cascade

_IF = Path(__file__).parents[1] / "golden" / "c_if_stage1"


@pytest.fixture(scope="module")
def cascade():
    return untrained_cascade()


def _any_file(chance: random.Random, content: bytes) -> bytes:
    """Changes a file by what it is: an object of JSON, tensors, or bytes."""
    if content.startswith(b"{"):
        return json_file(chance, json.loads(content))
    return safetensors(chance, content)


@pytest.mark.parametrize("sealed", [False, True])
def test_bundles(pytestconfig, tmp_path, cascade, monkeypatch, sealed):
    """Damage that the digests tell is refused; that with digests of its own is refused or is what it says."""
    monkeypatch.setattr(bundle, "_compare", lambda *_, **__: None)
    # Threads cost more than hashing so little.
    monkeypatch.setattr(
        arrays,
        "read_hashed",
        lambda paths: [(np.fromfile(one, np.uint8), sha256_of_file(one)) for one in paths],
    )
    cascade.export(str(tmp_path / "bundle"), max_file_bytes=20_000)
    folder = Folder(tmp_path / "bundle", bundle.HEADER if sealed else bundle.DIGESTS, 0.3)
    digests = json.loads(folder.whole[bundle.DIGESTS])

    def make(chance: random.Random) -> tuple[str, bytes]:
        name, content = folder.spoil(chance, None if not sealed else _spoil)
        if sealed and name in digests:
            told = digests | {name: sha256_of_file(folder.path / name)}
            (folder.path / bundle.DIGESTS).write_text(json.dumps(told))
        return name, content

    def _spoil(chance: random.Random, content: bytes) -> bytes:
        return _any_file(chance, content)

    def attempt(case: tuple[str, bytes]) -> None:
        bundle.load_bundle(str(folder.path))
        bundle.read_records(str(folder.path))
        if not sealed and case[0] != bundle.DIGESTS:
            assert case[1] == folder.whole[case[0]], "nobody noticed"

    fuzz(pytestconfig, f"bundles {'sealed' if sealed else 'damaged'}", make, attempt, share=0.5)


def test_peft_folders(pytestconfig, tmp_path, cascade, monkeypatch):
    """A LoRA that is read is merged, of finite numbers, or refused."""
    stage = cascade.stages[0]
    network = source.abstract_network(stage.stage)
    monkeypatch.setattr(source, "abstract_network", lambda _: network)
    config = LoraConfig(rank=2, alpha=4.0, targets=(".*",))
    factors = jax.tree.map(np.asarray, unbox(lora.init(config, network, jax.random.key(0))))
    one = Lora(path="x", config=config, stage="base", base=stage.checkpoint, factors=factors, word="checkpoint_4-ab",
               layouts=lora.layouts(config, network))  # fmt: skip
    write_peft(one, str(tmp_path / "peft"))
    folder = Folder(tmp_path / "peft", ARRAYS, 0.7)

    def spoilt(chance: random.Random, content: bytes) -> bytes:
        if content.startswith(b"{") or chance.random() < 0.4:
            return _any_file(chance, content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        told = json.loads(header["__metadata__"]["imagen_jax"])
        header["__metadata__"]["imagen_jax"] = json_file(chance, told).decode(errors="replace")
        made = json.dumps(header).encode()
        return len(made).to_bytes(8, "little") + made + content[8 + length :]

    def attempt(case: tuple[str, bytes]) -> None:
        (found,) = with_loras([stage], [(read_peft(str(folder.path)), 0.5)])
        leaves = jax.tree.leaves(found.weights.host)
        assert all(np.isfinite(leaf).all() for leaf in leaves)

    attempt(("", b""))
    fuzz(pytestconfig, "PEFT", lambda chance: folder.spoil(chance, spoilt), attempt)


def test_notes_of_fine_tuning(pytestconfig, tmp_path):
    """lora.json and inversion.json, as they lie in a checkpoint."""
    base = Source(path=str(tmp_path / "base"), stage="base", checkpoint="checkpoint_6-0123456789ab")
    place = tmp_path / "checkpoint_4"
    place.mkdir()
    (place / source.RECORD).write_bytes(LoraRecord(config=LoraConfig(), base=base).content(place))
    (place / words.RECORD).write_bytes(words.record("<new>", "0" * 64))
    folder = Folder(place, source.RECORD, 0.6)

    def attempt(case: tuple[str, bytes]) -> None:
        words.read_record(place)
        record = LoraRecord.read(place)
        # Nothing is asked of buckets, which lie beyond this machine.
        if not any(map(is_remote, record.paths)):
            with pytest.raises(UserError):
                record.find_base()

    attempt(("", b""))
    fuzz(pytestconfig, "notes of fine-tuning", folder.spoil, attempt)


def test_files_of_learned_words(pytestconfig, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    path = tmp_path / "word.safetensors"
    LearnedWord(word="<new>", vectors=vectors, encoder="0" * 64).save(str(path))
    folder = Folder(tmp_path, path.name, 1.0)

    def attempt(case: tuple[str, bytes]) -> None:
        found = LearnedWord.load(str(path))
        assert found.vectors.dtype == np.float32 and np.isfinite(found.vectors).all()

    fuzz(pytestconfig, "learned words", lambda chance: folder.spoil(chance, safetensors), attempt)


def test_folders_of_deepfloyd_if(pytestconfig, tmp_path, monkeypatch):
    """A stage that loads has times and a schedule to sample with."""
    monkeypatch.setattr(if_stage, "param_shapes", functools.cache(if_stage.param_shapes))
    for name in ("unet", "scheduler"):
        shutil.copytree(_IF / name, tmp_path / name)
    folder = Folder(tmp_path, "unet/config.json", 0.4)

    def attempt(case: tuple[str, bytes]) -> None:
        found = if_stage.load_if_stage(str(tmp_path))
        times, table = found.scheduler.timesteps(1), found.scheduler.alphas_cumprod()
        assert len(times) == 1 and 0 <= times[0] < len(table)
        assert (table > 0).all() and (table <= 1).all()

    fuzz(pytestconfig, "IF", lambda chance: folder.spoil(chance, weights), attempt, share=0.5)
