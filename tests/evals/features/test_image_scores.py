"""`imagen_jax eval --protocols`: two folders of pictures under several protocols, with Inception's random weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.evals import image_scores
from imagen_jax.evals.evaluator import EvalConfig, run
from imagen_jax.evals.image_scores import ImageScores, gather
from imagen_jax.evals.metrics import frechet_distance
from imagen_jax.evals.protocols import PROTOCOLS
from imagen_jax.main import main

NAMES = "imagen_30k,clean_fid_30k,glide_30k"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that the other tests of this folder compiled."""
    monkeypatch.setattr(image_scores, "BATCH", 4)


def write(folder: Path, seed: int, number: int) -> str:
    """Smooth pictures; the first is grey, the second CMYK."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(number):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        picture = small.resize((70 + seed, 50), Image.Resampling.BICUBIC)
        picture = picture.convert("L") if i == 0 else picture.convert("CMYK") if i == 1 else picture
        picture.save(folder / f"{i:03d}.jpg", quality=95)
    return str(folder)


@pytest.mark.slow
def test_one_set_of_images_under_several_protocols(inception, inception_file, tmp_path, capsys):
    ours, theirs = write(tmp_path / "ours", 1, 5), write(tmp_path / "theirs", 2, 6)
    places = [f"--gin.GENERATED_DIR={ours}", f"--gin.REFERENCE_DIR={theirs}", f"--gin.WEIGHTS_PATH={inception_file}"]
    words = ["eval", "--gin_file=configs/runs/image_scores.gin", f"--gin.RUN_DIR={tmp_path / 'run'}", *places]
    assert main([*words, f"--protocols={NAMES}"]) == 0
    told = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "image_scores.json").read_text())
    assert [row["protocol"]["name"] for row in result["scores"]] == NAMES.split(",")
    fids = [row["fid"] for row in result["scores"]]
    assert result["spread"] == pytest.approx(max(fids) - min(fids)) and result["spread"] > 0
    assert fids[0] == fids[2] != fids[1]
    assert result["weights_sha256"] == inception.fingerprint
    assert all(
        name in told for name in (*NAMES.split(","), "spread", "biased upwards below 2048", "5 of the protocol's")
    )
    # By hand, from the pixels on.
    protocol = PROTOCOLS["clean_fid_30k"]
    features = []
    for folder in (ours, theirs):
        pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(Path(folder).iterdir())]
        pixels = np.stack([protocol.prepare(one) for one in pictures])
        features.append(inception.features_of_resized(pixels)["2048"])
    assert fids[1] == pytest.approx(frechet_distance(*features), rel=1e-6)


@pytest.mark.slow
def test_statistics_know_the_resize_and_the_weights(inception, tmp_path):
    folder = write(tmp_path / "ours", 1, 4)
    names = sorted(path.name for path in Path(folder).iterdir())
    first, second = (gather(PROTOCOLS[name], inception, folder, names) for name in ("imagen_30k", "clean_fid_30k"))
    assert inception.fingerprint in first.identity
    with pytest.raises(UserError, match="tf1.*clean"):
        frechet_distance(first, second)
    (Path(folder) / "000.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"000\.jpg is no image"):
        gather(PROTOCOLS["imagen_30k"], inception, folder, names)


def test_what_cannot_be_scored_is_refused(tmp_path):
    folder = write(tmp_path / "ours", 1, 2)
    golden = Path(__file__).parents[2] / "golden" / "e_clip" / "clip"
    (tmp_path / "empty").mkdir()
    shutil.copytree(golden, tmp_path / "clip")
    places = {"generated_dir": folder, "reference_dir": folder, "weights_path": str(tmp_path / "clip")}
    with pytest.raises(UserError, match="protocols are of Inception"):
        run(EvalConfig(run_dir=str(tmp_path), evaluators=(ImageScores(**places),)))
    with pytest.raises(UserError, match="unknown"):
        ImageScores(**places, protocols=("fid",))
    assert main(["eval", "--gin_file=configs/experiments/demo_eval.gin", "--gin.RUN_DIR=x", "--protocols=all"]) == 2
