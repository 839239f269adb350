"""`imagen_jax eval --protocols`: two folders of pictures under several protocols, with Inception's random weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.evals import networks, scoring
from imagen_jax.evals.evaluator import EvalConfig, run
from imagen_jax.evals.image_scores import ImageFolder, ImageScores, MadeBy, table
from imagen_jax.evals.metrics import frechet_distance
from imagen_jax.evals.protocols import PROTOCOLS
from imagen_jax.main import main
from imagen_jax.report.card_scores import read_measured

NAMES = "imagen_30k,clean_fid_30k,glide_30k"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that the other tests of this folder compiled."""
    monkeypatch.setattr(networks, "BATCH", 4)
    monkeypatch.setattr(scoring, "BATCH", 4)


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
    assert result["spread"] == {"fid": pytest.approx(max(fids) - min(fids))} and result["spread"]["fid"] > 0
    assert fids[0] == fids[2] != fids[1]
    assert result["weights_sha256"] == {"inception": inception.fingerprint}
    assert all(name in told for name in (*NAMES.split(","), "spread", "biased upwards", "5 of the protocol's"))
    # By hand, from the pixels on.
    protocol = PROTOCOLS["clean_fid_30k"]
    features = []
    for folder in (ours, theirs):
        pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(Path(folder).iterdir())]
        pixels = np.stack([protocol.prepare(one) for one in pictures])
        features.append(inception.features_of_resized(pixels)["2048"])
    assert fids[1] == pytest.approx(frechet_distance(*features), rel=1e-6)


class Means:
    """A network's place: means of quarters of the pixels."""

    kind, layers, fingerprint = "inception", ("2048",), "means"

    def features_of_resized(self, pixels, layers):
        return {"2048": pixels[:, :298, :298].reshape(len(pixels), 2, 149, 2, 149, 3).mean((2, 4)).reshape(-1, 12)}


def test_a_reference_is_measured_once(monkeypatch, tmp_path):
    """A file stands for the images; one of another resize, of other images or of no known make does not."""
    ours, theirs = write(tmp_path / "ours", 1, 4), write(tmp_path / "theirs", 2, 5)
    stored = str(tmp_path / "reference.npz")
    places = {"generated_dir": ours, "statistics_path": stored}
    monkeypatch.setattr(networks, "load_extractor", lambda path, batch_size: Means())

    def fid(name: str, **more) -> float:
        ImageScores(**places, **more, protocols=(name,)).evaluate(None, str(tmp_path / "run"))
        return json.loads((tmp_path / "run" / "image_scores.json").read_text())["scores"][0]["fid"]

    with pytest.raises(UserError, match="needs the reference's images"):
        fid("imagen_30k")
    first = fid("imagen_30k", reference_dir=theirs)
    assert fid("imagen_30k") == first
    (card,), _ = read_measured(tmp_path / "run", "")
    assert card.results[0]["metrics"][0]["value"] == first and card.header[:2] == ["Protocol", "fid"]
    with pytest.raises(UserError, match="tf1.*clean|clean.*tf1"):
        fid("clean_fid_30k")
    (Path(theirs) / "000.jpg").unlink()
    with pytest.raises(UserError, match="is of 5 images, and .* holds 4"):
        fid("imagen_30k", reference_dir=theirs)
    with np.load(stored) as known:
        np.savez(stored, mu=known["mu"], sigma=known["sigma"])
    with pytest.raises(UserError, match="num_examples and identity"):
        fid("imagen_30k")
    assert fid("imagen_30k", made_by=MadeBy(protocol="imagen_30k", num_images=5)) == pytest.approx(first, rel=1e-9)
    with pytest.raises(UserError, match="tf1.*clean|clean.*tf1"):
        fid("imagen_30k", made_by=MadeBy(protocol="clean_fid_30k", num_images=5))
    with pytest.raises(UserError, match="one whole reference under one protocol"):
        fid("short_side_30k")


def test_images_of_every_kind_are_read_upright(tmp_path):
    """Grey, CMYK and one that a camera held on its side; one that is no image ends with its name."""
    folder = Path(write(tmp_path / "ours", 1, 2))
    tags = Image.Exif()
    tags[0x0112] = 6
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :10] = 255
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=tags, quality=95)
    images = ImageFolder(str(folder))
    assert [images[i].shape for i in range(3)] == [(50, 71, 3), (50, 71, 3), (30, 20, 3)]
    assert images[2][:8].min() > 240 and images[2][12:].max() < 15
    (folder / "000.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"000\.jpg is no image"):
        images[0]


def test_what_cannot_be_scored_is_refused(tmp_path):
    folder = write(tmp_path / "ours", 1, 2)
    golden = Path(__file__).parents[2] / "golden" / "e_clip" / "clip"
    (tmp_path / "empty").mkdir()
    shutil.copytree(golden, tmp_path / "clip")
    places = {"generated_dir": folder, "reference_dir": folder, "weights_path": str(tmp_path / "clip")}
    with pytest.raises(UserError, match="holds clip; expected inception"):
        run(EvalConfig(run_dir=str(tmp_path), evaluators=(ImageScores(**places),)))
    with pytest.raises(UserError, match="unknown"):
        ImageScores(**places, protocols=("fid",))
    assert main(["eval", "--gin_file=configs/experiments/demo_eval.gin", "--gin.RUN_DIR=x", "--protocols=all"]) == 2


def test_a_warning_of_every_row_is_told_once():
    """The table of all protocols says what holds of each row below, and what holds of one beneath it."""
    rows = [
        {"protocol": {"name": name, "geometry": "as_is", "resize": "tf1"}, "fid": fid, "num_generated": 5,
         "num_reference": 6, "warnings": ["too few", f"of {name}"]}
        for name, fid in (("a", 1.5), ("b", 4.0))
    ]  # fmt: skip
    lines = table({"scores": rows, "spread": {"fid": 2.5}}).split("\n")
    assert [line.split()[0] for line in lines] == ["protocol", "a", "of", "b", "of", "spread", "too"]
    assert lines[-2].split() == ["spread", "2.5000"] and lines[-1] == "too few"
