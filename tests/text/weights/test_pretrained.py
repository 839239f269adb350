"""Loading T5 encoders from t5x checkpoints and Hugging Face folders, whole and damaged."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from flax import serialization
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import UserError
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.text import load_encoder
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.encoders.t5_params import params_sha256
from imagen_jax.text.weights.pretrained import LoadedEncoder

GOLDEN = Path(__file__).parents[2] / "golden"
T5X, HUGGING_FACE = GOLDEN / "t5_t5x_v1_1", GOLDEN / "t5_hf_v1_1"
OUTPUTS = {T5X: "encoded", HUGGING_FACE: "last_hidden_state"}
TINY = T5Config(vocab_size=256, embed_dim=32, num_heads=4, head_dim=8, num_layers=2, mlp_dim=64)
PEER_TOLERANCE = 5e-5  # The peers themselves differ by 2.7e-5.


def batches(folder: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tokens, mask and the peer's outputs."""
    io = np.load(folder / "io.npz")
    return [(io[f"tokens_{i}"], io[f"mask_{i}"], io[f"{OUTPUTS[folder]}_{i}"]) for i in range(2)]


def outputs(encoder: LoadedEncoder, folder: Path) -> list[np.ndarray]:
    """Embeddings of the unpadded tokens of each batch."""
    return [np.asarray(encoder.encode(tokens, mask))[mask > 0] for tokens, mask, _ in batches(folder)]


@pytest.mark.parametrize("folder", [T5X, HUGGING_FACE])
def test_matches_the_program_that_wrote_it(folder: Path) -> None:
    encoder = load_encoder(folder, dtype="float32")
    assert encoder.config == TINY
    for (_, mask, expected), got in zip(batches(folder), outputs(encoder, folder), strict=True):
        assert np.abs(got - expected[mask > 0]).max() <= PEER_TOLERANCE


def test_bfloat16_holds_matrices_in_half_the_bytes_and_stays_near() -> None:
    encoder = load_encoder(HUGGING_FACE, dtype="bfloat16")
    dtypes = {leaf.ndim: leaf.dtype for leaf in jax.tree.leaves(encoder.params["encoder"]["layers_0"])}
    assert dtypes == {1: np.float32, 2: ml_dtypes.bfloat16}
    for (_, mask, expected), got in zip(batches(HUGGING_FACE), outputs(encoder, HUGGING_FACE), strict=True):
        wanted = expected[mask > 0]
        cosine = (got * wanted).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(wanted, axis=-1)
        assert got.dtype == np.float32 and cosine.min() > 0.998


@pytest.mark.parametrize("folder", [T5X, HUGGING_FACE])
@pytest.mark.parametrize(
    ("axes", "most"), [({"fsdp": 8, "data": 1}, 0.15), ({"fsdp": 2, "tensor": 4, "data": 1}, 0.25)]
)
def test_shards_over_eight_devices_and_scans(folder: Path, axes: dict[str, int], most: float) -> None:
    config = dataclasses.replace(TINY, scan_layers=True)
    encoder = load_encoder(folder, config=config, mesh=MeshConfig(**axes).build())
    leaves = jax.tree.leaves(encoder.params)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert held <= most * sum(leaf.nbytes for leaf in leaves)
    for (_, mask, expected), got in zip(batches(folder), outputs(encoder, folder), strict=True):
        assert np.abs(got - expected[mask > 0]).max() <= PEER_TOLERANCE


def test_the_digest_is_of_the_weights_alone() -> None:
    apart, stacked = (load_encoder(T5X, config=dataclasses.replace(TINY, scan_layers=scan)) for scan in (False, True))
    assert params_sha256(apart.params) == params_sha256(stacked.params)
    changed = jax.tree.map(np.array, apart.params)
    changed["encoder"]["layers_1"]["mlp"]["wo"]["kernel"][3, 4] += 1e-3
    assert params_sha256(changed) != params_sha256(apart.params)


def write_t5x(folder: Path, target: dict[str, np.ndarray], version: int = 3) -> None:
    """A checkpoint as t5x's saver lays it out: zarr arrays, and specs in the index."""
    folder.mkdir(parents=True)
    tree: dict[str, Any] = {}
    for name, value in target.items():
        node = tree
        *parents, last = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        stored = value.view(np.uint16) if version < 3 and value.dtype == ml_dtypes.bfloat16 else value
        # t5x keeps chunks small so that hosts can read parts.
        chunks = [max(1, size // 2) if size % 2 == 0 else size for size in value.shape]
        metadata = {"shape": list(value.shape), "chunks": chunks, "compressor": {"id": "gzip"}}
        file = {"driver": "file", "path": f"{folder}/target.{name}/"}
        spec = {"driver": "zarr", "kvstore": file, "metadata": metadata, "dtype": stored.dtype.name}
        tensorstore.open(spec, create=True).result().write(stored).result()
        node[last] = {**spec, "kvstore": {"driver": "gfile", "path": f"target.{name}/"}}
    index = {"version": version, "optimizer": {"target": tree, "state": {"step": np.int32(7)}}}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(index))


def dotted(params: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def stacked(params: dict[str, np.ndarray], axis: int) -> dict[str, np.ndarray]:
    """layers_0 and layers_1 as one array each."""
    first = [name for name in params if ".layers_0." in name]
    made = {n.replace("_0", "", 1): np.stack([params[n], params[n.replace("_0", "_1", 1)]], axis) for n in first}
    return {name: value for name, value in params.items() if ".layers_" not in name} | made


@pytest.mark.parametrize("axis", [0, 1])
def test_stacked_t5x_layers_are_taken_apart(tmp_path: Path, axis: int) -> None:
    params = dotted(load_encoder(T5X).params)
    write_t5x(tmp_path / "checkpoint_5", stacked(params, axis))
    write_t5x(tmp_path / "checkpoint_30", stacked(params, axis) | {"decoder.decoder_norm.scale": np.ones(32)})
    encoder = load_encoder(tmp_path)  # The newest of a run.
    assert encoder.config == TINY
    for name, value in dotted(encoder.params).items():
        np.testing.assert_array_equal(value, params[name], err_msg=name)


def test_stacked_layers_with_a_bias_each(tmp_path: Path) -> None:
    """As t5x's scalable_t5 writes them; equal biases in all layers must give what the shared one does."""
    params = dotted(load_encoder(T5X).params)
    bias = params.pop("encoder.relpos_bias.rel_embedding")
    write_t5x(
        tmp_path / "c", stacked(params, 1) | {"encoder.layers.relative_posemb.rel_embedding": np.stack([bias] * 2, 1)}
    )
    encoder = load_encoder(tmp_path / "c")
    assert encoder.config == dataclasses.replace(TINY, relpos_per_layer=True)
    for ours, theirs in zip(outputs(encoder, T5X), outputs(load_encoder(T5X), T5X), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_bfloat16_bits_of_old_t5x_versions(tmp_path: Path) -> None:
    params = {name: value.astype(ml_dtypes.bfloat16) for name, value in dotted(load_encoder(T5X).params).items()}
    write_t5x(tmp_path / "new", params)
    write_t5x(tmp_path / "old", params, version=2)
    new, old = (dotted(load_encoder(tmp_path / name).params) for name in ("new", "old"))
    for name, value in new.items():
        np.testing.assert_array_equal(value, params[name].astype(np.float32))
        np.testing.assert_array_equal(value, old[name])


def test_v1_0_and_a_small_whole_model(tmp_path: Path) -> None:
    """One matrix before the ReLU; embeddings under their other name; a decoder beside."""
    tensors = load_file(HUGGING_FACE / "model.safetensors")
    old = {name.replace("wi_0", "wi"): value for name, value in tensors.items() if "wi_1" not in name}
    old["encoder.embed_tokens.weight"] = old.pop("shared.weight")
    old["decoder.final_layer_norm.weight"] = np.ones(32, np.float32)
    config = json.loads((HUGGING_FACE / "config.json").read_text()) | {"feed_forward_proj": "relu"}
    save_file(old, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(tmp_path)
    assert encoder.config == dataclasses.replace(TINY, activations=("relu",))
    assert set(encoder.params["encoder"]["layers_0"]["mlp"]) == {"wi", "wo"}


def sharded(folder: Path) -> dict[str, str]:
    """The Hugging Face folder in three files with an index."""
    tensors = load_file(HUGGING_FACE / "model.safetensors")
    places = {name: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, name in enumerate(sorted(tensors))}
    folder.mkdir()
    for file in set(places.values()):
        save_file({name: tensors[name] for name in places if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    shutil.copy(HUGGING_FACE / "config.json", folder)
    return places


def test_several_files_equal_one(tmp_path: Path) -> None:
    sharded(tmp_path / "hf")
    one, several = (load_encoder(folder) for folder in (HUGGING_FACE, tmp_path / "hf"))
    assert params_sha256(one.params) == params_sha256(several.params)


def test_damaged_hugging_face_folders_are_refused(tmp_path: Path) -> None:
    places = sharded(tmp_path / "hf")
    file = tmp_path / "hf" / places["shared.weight"]
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"{file.name} is damaged.*download it again"):
        load_encoder(tmp_path / "hf")
    file.unlink()
    with pytest.raises(UserError, match=rf"lacks {file.name}"):
        load_encoder(tmp_path / "hf")
    save_file({"other": np.zeros(2)}, file)
    with pytest.raises(UserError, match=r"places .* which does not hold it"):
        load_encoder(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match="index.json is damaged"):
        load_encoder(tmp_path / "hf")


@pytest.mark.parametrize("shape", [(), (1, 1, 256, 32), (32,)])
@pytest.mark.parametrize("name", ["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"])
def test_arrays_of_other_ranks_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    shutil.copy(HUGGING_FACE / "config.json", tmp_path)
    tensors = load_file(HUGGING_FACE / "model.safetensors")
    save_file(tensors | {name: np.zeros(shape, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"{tmp_path} (holds no T5 encoder|is not an encoder of this config)"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("layers", [7, 2**31, 10**30])
def test_layers_that_no_array_shows_are_not_traced(tmp_path: Path, layers: int) -> None:
    shutil.copy(HUGGING_FACE / "model.safetensors", tmp_path)
    content = json.loads((HUGGING_FACE / "config.json").read_text()) | {"num_layers": layers}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"has arrays of 2 layers, its config says {layers}|must be at most"):
        load_encoder(tmp_path)


def test_decoders_alone_and_other_folders_are_refused(tmp_path: Path) -> None:
    save_file({"decoder.final_layer_norm.weight": np.zeros(3)}, tmp_path / "model.safetensors")
    shutil.copy(HUGGING_FACE / "config.json", tmp_path)
    with pytest.raises(UserError, match="holds no T5 encoder.*got decoder.final_layer_norm.weight"):
        load_encoder(tmp_path)
    write_t5x(tmp_path / "t5x", {"decoder.decoder_norm.scale": np.zeros(3)})
    with pytest.raises(UserError, match="holds no T5 encoder.*got decoder.decoder_norm.scale"):
        load_encoder(tmp_path / "t5x")
    with pytest.raises(UserError, match="no encoder at .*expected a t5x checkpoint"):
        load_encoder(tmp_path / "nowhere")


def test_damaged_t5x_checkpoints_are_refused(tmp_path: Path) -> None:
    params = dotted(load_encoder(T5X).params)
    name = "encoder.layers_1.mlp.wo.kernel"
    for harm in ("cut", "gone", "folder", "index"):
        folder = tmp_path / harm
        write_t5x(folder, params)
        chunk = folder / f"target.{name}" / "1.0"
        if harm == "cut":
            chunk.write_bytes(chunk.read_bytes()[:50])
        elif harm == "gone":
            chunk.unlink()
        elif harm == "folder":
            shutil.rmtree(folder / f"target.{name}")
        else:
            (folder / "checkpoint").write_bytes((folder / "checkpoint").read_bytes()[:100])
        part = {"gone": "has 3 of 4 chunk files", "index": "is no t5x index"}.get(harm, name)
        with pytest.raises(UserError, match=part) as error:
            load_encoder(folder)
        assert "copy the checkpoint again" in str(error.value)


def test_every_parameter_of_another_config_is_named() -> None:
    other = dataclasses.replace(TINY, mlp_dim=48, num_layers=3)
    with pytest.raises(UserError) as error:
        load_encoder(T5X, config=other)
    text = str(error.value)
    assert "encoder.layers_0.mlp.wo.kernel: got (64, 32), expected (48, 32)" in text
    assert "encoder.layers_2.attention.key.kernel: got nothing, expected (32, 32)" in text


def test_ids_of_another_vocabulary_are_refused() -> None:
    encoder = load_encoder(T5X)
    with pytest.raises(UserError, match="token id 256 is not in the encoder's vocabulary of 256"):
        encoder.encode(np.asarray([[5, 256]]), np.ones((1, 2)))
    with pytest.raises(UserError, match=r"both be \(b, n\)"):
        encoder.encode(np.asarray([[5, 6]]), np.ones((1, 3)))
