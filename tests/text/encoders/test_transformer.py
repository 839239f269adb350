"""CLIP text and BERT encoders from Hugging Face folders: transformers' own outputs, variants, refusals."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxtyping
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import UserError
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.text import load_encoder
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.encoders.bert import BertConfig
from imagen_jax.text.encoders.clip import CLIPConfig
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.encoders.t5_params import params_sha256
from imagen_jax.text.weights.encoder_copy import import_text, known_sha256
from imagen_jax.text.weights.pretrained import LoadedEncoder, Pretrained

GOLDEN = Path(__file__).parents[2] / "golden"
CLIP, BERT, T5 = GOLDEN / "clip_hf", GOLDEN / "bert_hf", GOLDEN / "t5_hf_v1_1"
OUTPUTS = {CLIP: "penultimate", BERT: "last_hidden_state"}
SIZES: dict[str, int] = {"embed_dim": 32, "num_heads": 4, "num_layers": 3, "mlp_dim": 48, "max_positions": 24}
CONFIGS = {CLIP: CLIPConfig(vocab_size=554, **SIZES), BERT: BertConfig(vocab_size=141, **SIZES)}
PEER_TOLERANCE = 5e-5

both = pytest.mark.parametrize("folder", [CLIP, BERT], ids=["CLIP", "BERT"])


def worst(encoder: LoadedEncoder, folder: Path) -> float:
    """Largest distance from the peer's outputs at unpadded tokens."""
    io, distances = np.load(folder / "io.npz"), []
    for i in range(2):
        mask = io[f"mask_{i}"]
        got = np.asarray(encoder.encode(io[f"tokens_{i}"], mask))
        assert got.dtype == np.float32
        distances.append(np.abs(got - io[f"{OUTPUTS[folder]}_{i}"])[mask].max())
    return float(max(distances))


def rewritten(
    folder: Path,
    to: Path,
    rename: Callable[[str], str] = str,
    config: Callable[[dict[str, Any]], Any] = lambda content: content,
    **more: np.ndarray,
) -> Path:
    """A copy of a folder with other array names, another config.json and more arrays."""
    shutil.copytree(folder, to)
    arrays = {rename(name): value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(arrays | more, to / "model.safetensors")
    (to / "config.json").write_text(json.dumps(config(json.loads((folder / "config.json").read_text()))))
    return to


@both
def test_matches_transformers(folder: Path) -> None:
    encoder = load_encoder(folder, dtype="float32")
    assert encoder.config == CONFIGS[folder]
    assert worst(encoder, folder) <= PEER_TOLERANCE


@both
def test_bfloat16_holds_matrices_in_half_the_bytes_and_stays_near(folder: Path) -> None:
    encoder = load_encoder(folder, dtype="bfloat16")
    dtypes = {leaf.ndim: leaf.dtype for leaf in jax.tree.leaves(encoder.params)}
    assert dtypes == {1: np.float32, 2: ml_dtypes.bfloat16}
    assert PEER_TOLERANCE < worst(encoder, folder) < 0.15  # of outputs of a few units


@both
@pytest.mark.parametrize("axes", [{"fsdp": 8, "data": 1}, {"fsdp": 2, "tensor": 4, "data": 1}])
def test_shards_over_eight_devices_and_scans(folder: Path, axes: dict[str, int]) -> None:
    config = dataclasses.replace(CONFIGS[folder], scan_layers=True)
    encoder = load_encoder(folder, config=config, mesh=MeshConfig(**axes).build())
    leaves = jax.tree.leaves(encoder.params)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    # The vocabularies do not divide by 8, the width does.
    assert held <= 0.55 * sum(leaf.nbytes for leaf in leaves)
    assert worst(encoder, folder) <= PEER_TOLERANCE
    assert params_sha256(encoder.params) == params_sha256(load_encoder(folder).params)


@both
def test_the_copy_is_the_encoder(tmp_path: Path, folder: Path) -> None:
    import_text(str(folder), str(tmp_path / "copy"), dtype="bfloat16")
    theirs, ours = load_encoder(folder, dtype="bfloat16"), load_encoder(tmp_path / "copy")
    assert ours.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert known_sha256(str(tmp_path / "copy"), "bfloat16") == params_sha256(theirs.params)


def test_a_whole_clip_model_with_sizes_left_to_the_defaults(tmp_path: Path) -> None:
    def whole(content: dict[str, Any]) -> dict[str, Any]:
        usual = ("hidden_act", "layer_norm_eps", "vocab_size", "max_position_embeddings")
        text = {name: value for name, value in content.items() if name not in usual} | {"num_attention_heads": 2}
        return {"model_type": "clip", "text_config": text, "text_config_dict": {"num_attention_heads": 4}}

    vision = {"vision_model.encoder.layers.5.mlp.fc1.weight": np.zeros((4, 4)), "logit_scale": np.zeros(())}
    folder = rewritten(CLIP, tmp_path / "clip", lambda name: "text_model." + name, whole, **vision)
    encoder = load_encoder(folder)
    assert encoder.config == CONFIGS[CLIP]
    assert params_sha256(encoder.params) == params_sha256(load_encoder(CLIP).params)


def test_a_bare_bert_of_old_names(tmp_path: Path) -> None:
    def old(name: str) -> str:
        name = name.removeprefix("bert.")
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    folder = rewritten(BERT, tmp_path / "bert", old, **{"pooler.dense.bias": np.zeros(32)})
    assert params_sha256(load_encoder(folder).params) == params_sha256(load_encoder(BERT).params)


def test_activations_are_told_apart(tmp_path: Path) -> None:
    for name, ours in (("gelu", "gelu_exact"), ("gelu_pytorch_tanh", "gelu"), ("silu", "silu")):
        folder = rewritten(CLIP, tmp_path / name, config=lambda content, name=name: content | {"hidden_act": name})
        encoder = load_encoder(folder)
        assert encoder.config == dataclasses.replace(CONFIGS[CLIP], activation=ours)
        assert worst(encoder, CLIP) > 100 * PEER_TOLERANCE


def test_several_files_equal_one(tmp_path: Path) -> None:
    folder = rewritten(CLIP, tmp_path / "clip")
    arrays = load_file(folder / "model.safetensors")
    places = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(sorted(arrays))}
    for file in set(places.values()):
        save_file({name: arrays[name] for name in places if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "model.safetensors").unlink()
    assert params_sha256(load_encoder(folder).params) == params_sha256(load_encoder(CLIP).params)


@pytest.mark.parametrize(
    ("folder", "change", "message"),
    [
        (CLIP, {"model_type": "clip_vision_model"}, "is of a 'clip_vision_model' model.*expected one of bert, clip,"),
        (CLIP, {"model_type": "gpt2"}, "is of a 'gpt2' model.*give the folder of a T5, CLIP or BERT model"),
        (CLIP, {"model_type": "bert"}, "holds no BERT encoder: expected bert.embeddings.word_embeddings.weight"),
        (CLIP, {"hidden_act": "tanh"}, "is not the config of a CLIP text encoder.*'tanh'"),
        (CLIP, {"num_hidden_layers": 4}, "encoder.layers_2.attention.key.bias: got nothing, expected"),
        (CLIP, {"num_attention_heads": 5}, r"embed_dim \(32\) must be divisible by num_heads \(5\)"),
        (BERT, {"model_type": "t5"}, "is not the config of a T5 encoder.*feed_forward_proj"),
        (BERT, {"model_type": "clip_text_model"}, "holds no CLIP text encoder: expected text_model.*got bert.emb"),
        (BERT, {"is_decoder": True}, "has is_decoder True is not supported; expected False"),
        (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        (BERT, {"vocab_size": 99}, r"token_embedder.embedding: got \(141, 32\), expected \(99, 32\)"),
    ],
)
def test_other_configs_are_refused(tmp_path: Path, folder: Path, change: dict[str, Any], message: str) -> None:
    other = rewritten(folder, tmp_path / "other", config=lambda content: content | change)
    with pytest.raises(UserError, match=message):
        load_encoder(other)


def test_damaged_and_other_weights_are_refused(tmp_path: Path) -> None:
    for name, content, message in (("none", None, "lacks config.json"), ("cut", "{", "config.json is damaged")):
        folder = rewritten(BERT, tmp_path / name)
        (folder / "config.json").unlink()
        if content is not None:
            (folder / "config.json").write_text(content)
        with pytest.raises(UserError, match=f"{message}.*download it"):
            load_encoder(folder)
    whole = lambda content: {"model_type": "clip", "text_config": content}  # noqa: E731
    vision = rewritten(CLIP, tmp_path / "vision", lambda name: "vision_model." + name, whole)
    with pytest.raises(UserError, match="holds no CLIP text encoder: expected text_model.embeddings.token_embedding"):
        load_encoder(vision)
    gpt = rewritten(BERT, tmp_path / "gpt", lambda name: name.replace("bert.encoder.layer", "transformer.h"))
    with pytest.raises(UserError, match="holds no BERT encoder: expected .*encoder.layer.0.intermediate.dense.weight"):
        load_encoder(gpt)


def test_a_config_of_another_kind_is_refused() -> None:
    t5 = T5Config(vocab_size=256, embed_dim=32, num_heads=4, head_dim=8, num_layers=2, mlp_dim=64)
    with pytest.raises(UserError, match="holds a BERT encoder, but the config is a T5Config; give a BertConfig"):
        load_encoder(BERT, config=t5)
    with pytest.raises(UserError, match="holds a T5 encoder, but the config is a CLIPConfig"):
        load_encoder(T5, config=CONFIGS[CLIP])


@both
def test_ids_and_lengths_out_of_range_are_refused(folder: Path) -> None:
    encoder, size = load_encoder(folder), CONFIGS[folder].vocab_size
    with pytest.raises(UserError, match=f"token id {size} is not in the encoder's vocabulary of {size}"):
        encoder.encode(np.asarray([[5, size]]), np.ones((1, 2)))
    with pytest.raises(UserError, match=r"too long \(25\), but the encoder has positions for 24 tokens; choose at m"):
        encoder.encode(np.zeros((1, 25), int), np.ones((1, 25)))


@pytest.mark.parametrize(
    ("folder", "change", "message"),
    [
        (CLIP, {"num_layers": 1}, "CLIPConfig.num_layers must be at least 2; got 1"),
        (CLIP, {"max_positions": 0}, r"CLIPConfig.max_positions \(0\) must be an integer >= 1"),
        (CLIP, {"activation": "linear"}, "CLIPConfig.activation must be one of"),
        (CLIP, {"dtype": "float16"}, "CLIPConfig.dtype must be one of"),
        (BERT, {"num_token_types": 0}, r"BertConfig.num_token_types \(0\) must be an integer >= 1"),
        (BERT, {"norm_epsilon": 1}, r"BertConfig.norm_epsilon must be in \(0, 1\)"),
        (BERT, {"scan_layers": 1}, "BertConfig.scan_layers must be True or False"),
        (BERT, {"num_heads": 3}, r"BertConfig.embed_dim \(32\) must be divisible by num_heads \(3\)"),
    ],
)
def test_config_refuses(folder: Path, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as when gin fills the fields
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIGS[folder], **change)


@both
def test_captions_become_embeddings_of_their_own_ids(folder: Path) -> None:
    config = TextConfig(encoder=Pretrained(path=str(folder)), vocabulary_path=str(folder), max_length=24)
    text_encoder, encoder = TextEncoder(config), load_encoder(folder)
    captions = json.loads((folder / "captions.json").read_text())
    text, mask = text_encoder.encode([one["caption"] for one in captions])
    assert text_encoder.sizes == CONFIGS[folder] and text.shape == (len(captions), 24, 32)
    for row, real, one in zip(text, mask, captions, strict=True):
        ids = one["ids"] if len(one["ids"]) <= 24 else [*one["ids"][:23], one["ids"][-1]]
        assert real.tolist() == [i < len(ids) for i in range(24)]
        alone = np.asarray(encoder.encode(np.asarray([ids]), np.ones((1, len(ids)))))[0]
        np.testing.assert_allclose(row[: len(ids)], alone, atol=2e-5)
        assert not row[len(ids) :].any()


@both
def test_fingerprint_names_the_architecture(folder: Path) -> None:
    config = TextConfig(encoder=Pretrained(path=str(folder)), vocabulary_path=str(folder), max_length=24)
    fingerprint = TextEncoder(config).fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    sizes = fingerprint["encoder_config"]
    assert sizes["architecture"] == {CLIP: "clip", BERT: "bert"}[folder] and "scan_layers" not in sizes


def test_the_first_layers_are_an_encoder_that_has_no_others(tmp_path: Path) -> None:
    cut = rewritten(BERT, tmp_path / "cut", lambda name: name if "layer.2." not in name else f"unused.{name}")
    settings = json.loads((cut / "config.json").read_text())
    (cut / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 2}))
    wanted, got = load_encoder(cut), load_encoder(BERT, first_layers=2)
    assert params_sha256(got.params) == params_sha256(wanted.params)
    assert got.config == wanted.config != CONFIGS[BERT]
    config = TextConfig(encoder=Pretrained(path=str(BERT), first_layers=2), vocabulary_path=str(BERT), max_length=8)
    whole = dataclasses.replace(config, encoder=Pretrained(path=str(BERT)))
    text = TextEncoder(config).encode(["red"])[0]
    ids = np.asarray(json.loads((BERT / "captions.json").read_text())[0]["ids"])[None]
    np.testing.assert_allclose(got.encode(ids, np.ones_like(ids)), wanted.encode(ids, np.ones_like(ids)), atol=1e-6)
    assert np.abs(text - TextEncoder(whole).encode(["red"])[0]).max() > 0.1


@pytest.mark.parametrize(
    ("folder", "fields", "message"),
    [
        (BERT, {"first_layers": 4}, r"first_layers \(4\) is more than .* has; choose at most 3"),
        (BERT, {"first_layers": 0}, r"Pretrained.first_layers \(0\)"),
        (
            BERT,
            {"first_layers": 2, "sizes": CONFIGS[BERT]},
            r"\(2\) and the num_layers of its sizes \(3\) must be",
        ),
        (CLIP, {"first_layers": 1}, r"first_layers \(1\) is for T5 and BERT"),
    ],
)
def test_first_layers_refuses(folder: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pretrained(path=str(folder), **fields).config()


def test_an_encoder_may_lie_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carries_an_encoder"
    shutil.copytree(BERT, package / "model")
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = "package:carries_an_encoder/model"
    config = TextConfig(encoder=Pretrained(path=path), vocabulary_path=path, max_length=8)
    here = dataclasses.replace(config, encoder=Pretrained(path=str(BERT)), vocabulary_path=str(BERT))
    assert TextEncoder(config).fingerprint() == TextEncoder(here).fingerprint()
    for wrong, message in (
        ("package:not_there_at_all/model", "needs the package not_there_at_all, which is not installed"),
        ("package:carries_an_encoder/other", "has no 'other'; install another version"),
        ("package:carries_an_encoder/../x", "names no files of a package"),
    ):
        with pytest.raises(UserError, match=message):
            load_encoder(wrong)


def test_a_length_beyond_the_positions_is_refused() -> None:
    for length, message in (
        (25, r"max_length is too long \(25\), but the encoder has positions for 24 tokens"),
        (2, r"max_length \(2\) leaves no room for a caption: .* 2 special tokens around it; choose at least 3"),
    ):
        config = TextConfig(encoder=Pretrained(path=str(CLIP)), vocabulary_path=str(CLIP), max_length=length)
        with pytest.raises(UserError, match=message):
            TextEncoder(config)
    with pytest.raises(UserError, match="has 554 pieces, but the encoder's vocab_size is 141"):
        TextEncoder(TextConfig(encoder=Pretrained(path=str(BERT)), vocabulary_path=str(CLIP), max_length=20))
