"""The copy that `import_text` writes: equal, readable by orbax itself, whole or not there."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import UserError
from imagen_jax.files import alone_in, remove_files, write_bytes
from imagen_jax.main import main
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.text import load_encoder
from imagen_jax.text.encoders.t5_params import params_sha256
from imagen_jax.text.weights import encoder_copy
from imagen_jax.text.weights.encoder_copy import LOCK, import_text, known_sha256
from tests.full_disk import files_up_to

GOLDEN = Path(__file__).parents[2] / "golden"
SOURCES = [GOLDEN / "t5_t5x_v1_1", GOLDEN / "t5_hf_v1_1"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_copy_is_the_encoder(tmp_path: Path, source: Path, dtype: str) -> None:
    assert main(["import_text", "--from", str(source), "--to", str(tmp_path / "copy"), "--dtype", dtype]) == 0
    theirs, ours = load_encoder(source, dtype=dtype), load_encoder(tmp_path / "copy")
    assert ours.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert known_sha256(str(tmp_path / "copy"), dtype) == params_sha256(theirs.params)
    assert known_sha256(str(source), dtype) is None
    other = "bfloat16" if dtype == "float32" else "float32"
    assert known_sha256(str(tmp_path / "copy"), other) is None


def test_orbax_alone_restores_it(tmp_path: Path) -> None:
    import_text(str(SOURCES[1]), str(tmp_path / "copy"), dtype="bfloat16")
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "copy" / "arrays")
    wanted = load_encoder(SOURCES[1], dtype="bfloat16").params
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert found["encoder"]["layers_1"]["mlp"]["wo"]["kernel"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(("cloud", "scheme"), [("bucket", "gs"), ("s3_bucket", "s3")])
def test_a_copy_in_a_bucket_is_that_of_this_machine(request, tmp_path: Path, cloud: str, scheme: str) -> None:
    server, place = request.getfixturevalue(cloud), f"{scheme}://bucket-a/t5"
    import_text(str(SOURCES[0]), str(tmp_path / "copy"))
    command = ["import_text", "--from", str(SOURCES[0]), "--to", place]
    assert main(command) == 0
    jax.tree.map(np.testing.assert_array_equal, load_encoder(place).params, load_encoder(tmp_path / "copy").params)
    assert known_sha256(place, "float32") == known_sha256(str(tmp_path / "copy"), "float32")
    assert main(command) == 2  # It is there.
    assert main([*command, "--overwrite"]) == 0
    # A flipped byte, and a copy without its last file.
    name = max((name for name in server.names() if "/d/" in name), key=lambda name: len(server.content(name)))
    content = server.content(name)
    write_bytes(f"{scheme}://bucket-a/{name}", content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="changed"):
        load_encoder(place)
    remove_files(place, ["encoder.json"])
    with pytest.raises(UserError, match=f"no encoder at {place}"):
        load_encoder(place)


def test_it_loads_sharded_and_stacked(tmp_path: Path) -> None:
    import_text(str(SOURCES[0]), str(tmp_path / "copy"))
    whole = load_encoder(tmp_path / "copy")
    config = dataclasses.replace(whole.config, scan_layers=True)
    spread = load_encoder(tmp_path / "copy", config=config, mesh=MeshConfig(fsdp=8, data=1).build())
    assert params_sha256(whole.params) == params_sha256(spread.params)


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    import_text(str(SOURCES[0]), str(tmp_path / "copy"))
    victim = max((tmp_path / "copy" / "arrays").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(UserError, match=rf"damaged: .*{victim.name} changed.*import_text --from"):
        load_encoder(tmp_path / "copy")
    victim.unlink()
    with pytest.raises(UserError, match=victim.name):
        load_encoder(tmp_path / "copy")


@pytest.mark.parametrize("architecture", [["t5"], "t6", None])
def test_another_architecture_is_refused(tmp_path: Path, architecture: object) -> None:
    import_text(str(SOURCES[1]), str(tmp_path / "copy"))
    header = json.loads((tmp_path / "copy" / "encoder.json").read_text())
    (tmp_path / "copy" / "encoder.json").write_text(json.dumps(header | {"architecture": architecture}))
    with pytest.raises(UserError, match="expected (one of t5, clip, bert|a str)"):
        load_encoder(tmp_path / "copy")


def test_what_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["import_text", "--from", str(SOURCES[0]), "--to", str(tmp_path / "copy")]
    assert main(command) == 0
    assert main(command) == 2
    assert "set --overwrite to replace it" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    (tmp_path / "mine").mkdir()
    assert main([*command[:-1], str(tmp_path / "mine"), "--overwrite"]) == 2
    assert "it is no encoder copy" in capsys.readouterr().err
    with alone_in(tmp_path, f"new{LOCK}", "new", "written"):
        assert main([*command[:-1], str(tmp_path / "new")]) == 2
        assert "new' is being written by process" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "mine"]
    assert main([*command[:-1], "gs://bucket-a/"]) == 2
    assert "is a whole bucket; name a folder in it, as gs://bucket-a/t5" in capsys.readouterr().err


def test_a_full_disk_leaves_no_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["import_text", "--from", str(SOURCES[0]), "--to", str(tmp_path / "copy")]
    with files_up_to(5000):
        assert main(command) == 2
    assert "File too large" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()
    assert main(command) == 0


@pytest.mark.parametrize("dtype", [np.int8, np.complex64, np.bool_])
def test_quantised_encoders_are_refused_and_leave_nothing(tmp_path: Path, dtype: type) -> None:
    hugging_face = GOLDEN / "t5_hf_v1_1"
    tensors = load_file(hugging_face / "model.safetensors")
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    (tmp_path / "source").mkdir()
    shutil.copy(hugging_face / "config.json", tmp_path / "source")
    save_file(tensors | {name: tensors[name].astype(dtype)}, tmp_path / "source" / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} of .* is of {np.dtype(dtype)}; expected floating-point"):
        import_text(str(tmp_path / "source"), str(tmp_path / "copy"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_parameters_pass_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    read = encoder_copy.EncoderCheckpoint.read

    class Tracked(np.ndarray):
        def __del__(self) -> None:
            held.remove(id(self))

    def tracked(self, *arguments):
        value = np.array(read(self, *arguments)).view(Tracked)
        held.append(id(value))
        assert len(held) <= 2, "the one before is still held"
        return value

    monkeypatch.setattr(encoder_copy.EncoderCheckpoint, "read", tracked)
    import_text(str(SOURCES[0]), str(tmp_path / "copy"))
    header = json.loads((tmp_path / "copy" / "encoder.json").read_text())
    assert len(header["shapes"]) == 21
