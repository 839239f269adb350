"""Weights that are cut, of another network or far too large: one line, which names the file and says what to do."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from imagen_jax.errors import UserError
from imagen_jax.evals import load_extractor
from imagen_jax.evals.features import arrays as weights_files
from tests.evals.features.dinov2_folder import write_dinov2
from tests.evals.features.torch_files import old_layout, state, zipped

CLIP = Path(__file__).parents[2] / "golden" / "e_clip" / "clip"
# Of no Inception.
OTHER = {"conv1.weight": np.ones((64, 3, 7, 7), np.float32), "fc.weight": np.ones((1000, 512), np.float32)}


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **OTHER)
    return buffer.getvalue()


FILES = {
    "today.pth": zipped(OTHER, state(OTHER, False)),
    "old.pth": old_layout(OTHER, state(OTHER, True)),
    "weights.npz": _npz(),
    "weights.safetensors": save(OTHER),
}


def refused(path: Path, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_extractor(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.fixture(params=["clip", "dinov2"])
def folder(request, tmp_path) -> Path:
    path = tmp_path / request.param
    path.mkdir()
    if request.param == "dinov2":
        write_dinov2(path, registers=True)
    else:
        for name in ("config.json", "model.safetensors"):
            (path / name).write_bytes((CLIP / name).read_bytes())
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused(tmp_path, name):
    for part in (0.999, 0.5, 0.0):
        (tmp_path / name).write_bytes(FILES[name][: int(part * len(FILES[name]))])
        refused(tmp_path / name, "download it again")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_network_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    refused(tmp_path / name, r"holds no Inception v3 of 2015-12-05 .*expected .*its publisher")


@pytest.mark.parametrize("name", FILES)
def test_a_file_far_too_large_is_not_read(monkeypatch, tmp_path, name):
    monkeypatch.setattr(weights_files, "_MOST_BYTES", 1000)
    (tmp_path / name).write_bytes(FILES[name])
    refused(tmp_path / name, "of weights, and those of Inception v3 are 0.1 GB")


def test_few_bytes_that_unpack_to_many_are_not_read(monkeypatch, tmp_path):
    monkeypatch.setattr(weights_files, "_MOST_BYTES", 100_000)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(100_000, np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 1000
    refused(tmp_path / "a.npz", "of weights, and those of Inception v3")


@pytest.mark.parametrize("content", [b"no array", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4'\n", b""])
def test_what_is_no_array_in_an_npz_is_refused(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("fc.weight.npy", content)
    refused(tmp_path / "a.npz", "is damaged.*download it again")


def test_a_cut_folder_is_refused(folder):
    for name in ("model.safetensors", "config.json"):
        content = (folder / name).read_bytes()
        for part in (0.999, 0.5, 0.0):
            (folder / name).write_bytes(content[: int(part * len(content))])
            refused(folder, "download it again")
        (folder / name).write_bytes(content)


def test_a_folder_of_another_network_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit_mae"}))
    refused(folder, "'vit_mae' model; expected one of clip, dinov2")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(save(OTHER))
    refused(folder, "download it again")
    other = tmp_path / "other"
    other.mkdir()
    write_dinov2(other, registers=False)
    shutil.copy((CLIP if "dino" in folder.name else other) / "model.safetensors", folder)
    refused(folder, "download it again")


def test_images_of_another_size_than_the_network_takes_are_refused(folder):
    """A crop that is not the model's, and none at all."""
    made = {"size": {"shortest_edge": 40}, "crop_size": {"height": 37, "width": 37}}
    (folder / "preprocessor_config.json").write_text(json.dumps(made))
    refused(folder, "37")
    made = {"do_resize": False, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(made))
    with pytest.raises(UserError, match=r"9 x 14 .*network takes") as error:
        load_extractor(folder, batch_size=1).features(np.zeros((1, 9, 14, 3), np.uint8))
    assert "\n" not in str(error.value)
