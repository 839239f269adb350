"""Bundles whose kernels are kept in fewer bits."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax.checkpoints.trees import named_leaves
from imagen_jax.errors import UserError
from imagen_jax.export import weights
from imagen_jax.main import main
from imagen_jax.sampling.cascade import Cascade
from tests.untrained import untrained_cascade


def test_integers_are_those_of_a_hand_and_their_errors_at_most_half_a_step():
    kernel = np.float32([[127.0, -2.0, 0.0], [63.4, 1.0, 0.0]])
    made = weights.packed({"a.kernel": kernel, "a.bias": kernel[0]}, "int8")
    assert made["a.kernel"].tolist() == [[127, -127, 0], [63, 64, 0]]
    np.testing.assert_allclose(made["a.kernel:scale"], [[1.0, 2 / 127, 1.0]], rtol=1e-6)
    assert made["a.bias"] is not None and made["a.bias"].dtype == np.float32
    rng = np.random.default_rng(0)
    for shape, scales in (((3, 3, 8, 5), (1, 1, 1, 5)), ((2, 8, 5), (2, 1, 5)), ((2, 3, 3, 8, 5), (2, 1, 1, 1, 5))):
        leaf = rng.standard_normal(shape).astype(np.float32)
        made = weights.packed({"x.kernel": leaf}, "int8")
        assert made["x.kernel:scale"].shape == scales and made["x.kernel"].dtype == np.int8
        back = weights.unpacked("b", made, "int8")["x.kernel"]
        assert (np.abs(back - leaf) <= made["x.kernel:scale"] * 0.5001).all()


@pytest.mark.parametrize(("form", "share"), [("bfloat16", 0.5), ("int8", 0.25)])
def test_a_bundle_gives_back_what_its_files_hold(form: str, share: float, tmp_path: Path):
    cascade = untrained_cascade().only("base", "base")
    cascade.export(str(tmp_path / "whole"))
    changes = cascade.export(str(tmp_path / "small"), form=form)
    whole, small = (
        load_file(next((tmp_path / one / "stages/0-base").glob("*.safetensors"))) for one in ("whole", "small")
    )
    (loaded,) = Cascade.load(str(tmp_path / "small")).stages
    got = named_leaves(jax.device_get(loaded.weights.host))
    assert got.keys() == whole.keys() and all(leaf.dtype == np.float32 for leaf in got.values())
    for name, leaf in got.items():
        if not name.endswith("kernel"):
            np.testing.assert_array_equal(leaf, whole[name])
        elif form == "bfloat16":
            np.testing.assert_array_equal(leaf, whole[name].astype(ml_dtypes.bfloat16).astype(np.float32))
        else:
            exact = small[name].astype(np.float64) * small[name + ":scale"]
            np.testing.assert_allclose(leaf, exact, rtol=1e-6)
    kernels = [name for name in whole if name.endswith("kernel")]
    assert sum(small[name].nbytes for name in kernels) == share * sum(whole[name].nbytes for name in kernels)
    assert 0 < changes["base"] < 0.2
    header = json.loads((tmp_path / "small" / "bundle.json").read_text())
    assert (header["format_version"], header["weights"]) == (2, form)
    assert json.loads((tmp_path / "whole" / "bundle.json").read_text())["format_version"] == 1


def test_what_has_no_form_is_refused(tmp_path: Path):
    bad = {"a.kernel": np.float32([[1.0, np.nan]])}
    for form in ("bfloat16", "int8"):
        with pytest.raises(UserError, match=f"a.kernel holds infinities or NaNs, which {form} cannot keep"):
            weights.packed(bad, form)
    made = weights.packed({"a.kernel": np.ones((2, 2), np.float32)}, "int8")
    for arrays, form in (
        ({"a.kernel": made["a.kernel"]}, "int8"),
        ({"a.kernel:scale": made["a.kernel:scale"]}, "int8"),
        (made, "bfloat16"),
    ):
        with pytest.raises(UserError, match=f"b says that its weights are {form}, and its arrays are not"):
            weights.unpacked("b", arrays, form)
    with pytest.raises(UserError, match="scale of a.kernel of another shape"):
        weights.unpacked("b", {**made, "a.kernel:scale": np.ones((3, 5), np.float32)}, "int8")
    with pytest.raises(UserError, match=r"weights \('int4'\) must be one of float32, bfloat16, int8"):
        untrained_cascade().export(str(tmp_path / "x"), form="int4")


def test_the_command_makes_them_of_a_bundle_and_tells_the_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    companions = {"README.md": b"# card\n", "training/versions.json": b"{}", "notes.txt": b"mine"}
    untrained_cascade().export(str(tmp_path / "whole"), companions=companions)
    command = ["export", f"--from={tmp_path}/whole", f"--to={tmp_path}/small", "--weights=int8"]
    assert main([*command, "--format=stablehlo"]) == 2
    assert "--weights=int8 is of bundles; got --format=stablehlo" in capsys.readouterr().err
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "stage base: with int8 weights the output of one call changes by" in told and "stage sr" in told
    assert (tmp_path / "small" / "README.md").read_bytes() == b"# card\n"
    assert (tmp_path / "small" / "training" / "versions.json").is_file()
    assert not (tmp_path / "small" / "notes.txt").exists()
    assert Cascade.load(str(tmp_path / "small")).names == ["base", "sr"]
