"""The bundle: draws as the cascade does, loads without the trainer, and lets nothing pass that is not as it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax.errors import UserError
from imagen_jax.export import arrays, bundle
from imagen_jax.sampling.cascade import Cascade
from tests.untrained import untrained_cascade

CAPTIONS = ["a red cube", "b"]
BASE = "stages/0-base"


@pytest.fixture(scope="module", autouse=True)
def one_drawing_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagen_jax.sampling.cascade.drawing_devices", lambda: jax.local_devices()[:1])
        yield


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return untrained_cascade()


@pytest.fixture(scope="module")
def made(cascade, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "bundle"
    cascade.export(str(path), companions={"README.md": b"# card\n"}, max_file_bytes=20_000)
    return path


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def mend(folder: Path) -> None:
    """Writes the digests anew, as someone who changes a bundle on purpose would."""
    (folder / "digests.json").unlink()
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    sums = bundle.sha256_of_files([folder / name for name in names])
    (folder / "digests.json").write_text(json.dumps(dict(zip(names, sums, strict=True))))


def test_it_draws_what_the_cascade_draws_bit_for_bit(cascade, made):
    loaded = Cascade.load(str(made))
    assert loaded.config_hash == cascade.config_hash and loaded.names == ["base", "sr"]
    # Both stages together are drawn in tests/integration/test_trained_stage.py.
    drawn, expected = (one.only(last="base").sample(CAPTIONS, seed=3)[0] for one in (loaded, cascade))
    assert expected.std() > 0 and np.array_equal(drawn, expected)
    for one, other in zip(cascade.stages, loaded.stages, strict=True):
        assert (one.sampling, one.stage, one.checkpoint) == (other.sampling, other.stage, other.checkpoint)


def test_another_reader_finds_the_parameters(cascade, made):
    """safetensors itself reads the files, of which a stage larger than one has several."""
    files = sorted((made / BASE).glob("*.safetensors"))
    assert len(files) > 1 and (made / "README.md").read_text() == "# card\n"
    found = {name: leaf for file in files for name, leaf in load_file(file).items()}
    wanted = jax.tree_util.tree_leaves_with_path(cascade.stages[0].weights.host)
    assert len(found) == len(wanted)
    for path, leaf in wanted:
        assert np.array_equal(found[".".join(key.key for key in path)], leaf)


def test_neither_tensorflow_nor_the_trainer_is_in_the_process(made):
    code = (
        "import sys; from imagen_jax import Cascade\n"
        "Cascade.load(sys.argv[1]).encoder.encode(['a'])\n"
        "trainer = [name for name in sys.modules if name.startswith('imagen_jax.train') and name[16:] not in"
        " ('', '.hooks')]\n"
        "print(trainer, [name for name in ('tensorflow', 'seqio', 'gin', 'imagen_jax.data') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout == "[] []\n", done.stdout + done.stderr[-500:]


def test_any_byte_that_changes_is_refused_by_its_file(copy):
    rng = np.random.default_rng(0)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    for path in files:
        original = path.read_bytes()
        for place in rng.integers(len(original), size=3):
            flipped = bytearray(original)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(flipped))
            with pytest.raises(UserError) as told:
                bundle.load_bundle(str(copy))
            assert "\n" not in str(told.value)
            if path.name != "digests.json":
                assert f"{path.relative_to(copy).as_posix()} (changed)" in str(told.value)
        path.write_bytes(original)
    bundle.load_bundle(str(copy))


def test_what_is_missing_or_too_much_is_refused(copy):
    (copy / "notes.txt").write_text("beside")
    bundle.load_bundle(str(copy))
    (copy / BASE / "more").write_text("x")
    (copy / "README.md").unlink()
    with pytest.raises(UserError, match=r"README.md \(missing\).*stages/0-base/more \(not written by export\)"):
        bundle.load_bundle(str(copy))
    (copy / "digests.json").unlink()
    with pytest.raises(UserError, match="no whole bundle"):
        Cascade.load(str(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: {**header, "format_version": 3}, "format 3, this program reads 2; install a newer"),
        (lambda header: {**header, "format_version": "1"}, "format_version '1'"),
        (lambda header: {**header, "stages": []}, "names no stage"),
        (lambda header: [], "format_version None"),
        (lambda header: {**header, "stages": [{**header["stages"][0], "folder": "../0-base"}]}, "'../0-base'"),
        (lambda header: {**header, "stages": [{**header["stages"][0], "files": ["../x"]}]}, "'../x'"),
        (lambda header: {**header, "stages": [{**header["stages"][0], "files": ["x"]}]}, "names stages/0-base/x"),
    ],
)
def test_headers_that_cannot_be_right_are_refused(copy, change, message):
    path = copy / "bundle.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    mend(copy)
    with pytest.raises(UserError, match=message):
        bundle.load_bundle(str(copy))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "stages/../../x", "a//b", "."])
def test_digests_of_files_elsewhere_are_refused(copy, name):
    path = copy / "digests.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "0" * 64}))
    with pytest.raises(UserError, match="no file of the bundle"):
        bundle.load_bundle(str(copy))


def _file(header: object, data: bytes = b"\0" * 8) -> np.ndarray:
    text = json.dumps(header).encode()
    return np.frombuffer(len(text).to_bytes(8, "little") + text + data, np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        np.zeros(3, np.uint8),
        np.full(64, 255, np.uint8),
        _file([]),
        _file({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        _file({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        _file({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}),
        _file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
        _file({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}),
        _file({"a": {"dtype": "Q7", "shape": [2], "data_offsets": [0, 8]}}),
        _file({"a": {"dtype": "F32", "shape": [2]}}),
        _file({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}),
    ],
)
def test_safetensors_headers_that_lie_are_refused(content):
    with pytest.raises(UserError, match="header that its bytes do not fit"):
        arrays.parse_arrays("x.safetensors", content)


def test_arrays_come_back_as_they_were(tmp_path):
    leaves = {
        "a.b": np.array(3.5, np.float32),
        "a.c": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "d": np.array([1.5, -2], ml_dtypes.bfloat16),
        "e": np.zeros((0, 4), np.float32),
    }
    (name,) = arrays.write_arrays(str(tmp_path), leaves, 1 << 20)
    ((content, _),) = arrays.read_hashed([str(tmp_path / name)])
    found = arrays.parse_arrays(name, content)
    assert found.keys() == leaves.keys()
    for key, leaf in leaves.items():
        assert found[key].dtype == leaf.dtype and np.array_equal(found[key], leaf)
    with pytest.raises(UserError, match="holds a dot"):
        arrays.flat({"a.b": leaves["a.b"]})


def test_what_is_in_the_way_stays(cascade, made, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").write_text("dear")
    with pytest.raises(UserError, match="it is no bundle"):
        cascade.export(str(tmp_path / "mine"), overwrite=True)
    with pytest.raises(UserError, match="give --overwrite"):
        cascade.export(str(made))
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter"]
    with pytest.raises(UserError, match="must be bundle"):
        cascade.export(str(tmp_path / "other"), format="zip")


def test_what_was_not_written_as_it_is_never_has_the_name(cascade, tmp_path, monkeypatch):
    """A disk that returns other bytes than it was given: the digests agree with what lies there."""
    write = arrays.write_arrays

    def wrong(folder, leaves, max_bytes):
        name, leaf = next(iter(leaves.items()))
        return write(folder, {**leaves, name: np.nextafter(leaf, np.float32(9))}, max_bytes)

    monkeypatch.setattr(arrays, "write_arrays", wrong)
    with pytest.raises(UserError, match="stage 'base' was not written as it is"):
        cascade.export(str(tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


def test_it_goes_to_a_bucket_and_comes_back(cascade, bucket):
    place = "gs://bucket-a/models/demo"
    cascade.export(place)
    for one, other in zip(cascade.stages, Cascade.load(place).stages, strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, one.weights.host, other.weights.host))
    with pytest.raises(UserError, match="give --overwrite"):
        cascade.export(place)
