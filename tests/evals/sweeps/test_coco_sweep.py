"""configs/runs/coco_fid30k.gin on a handful of pictures, with files of Inception and CLIP, against features by hand."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax import gin_config
from imagen_jax.evals import load_extractor, networks, scoring
from imagen_jax.evals.metrics import frechet_distance
from imagen_jax.evals.protocols import PROTOCOLS
from imagen_jax.evals.sweeps.sweep import SweepConfig, dry_run, run_sweep
from imagen_jax.report.sweep import write_sweep_page
from tests.evals.sweeps.tiny_coco import write_coco
from tests.untrained import untrained_cascade

GOLDEN = Path(__file__).parents[2] / "golden"


def _clip_folder(folder: Path) -> Path:
    """The golden CLIP with a vocabulary, whose ids are cut to those that its weights know."""
    shutil.copytree(GOLDEN / "e_clip" / "clip", folder)
    shutil.copy(GOLDEN / "clip_hf" / "merges.txt", folder)
    vocabulary = json.loads((GOLDEN / "clip_hf" / "vocab.json").read_text())
    table = {word: number % 254 for word, number in vocabulary.items()}
    (folder / "vocab.json").write_text(json.dumps(table | {"<|startoftext|>": 254, "<|endoftext|>": 255}))
    return folder


@pytest.mark.slow
def test_fid_and_clip_score_of_a_sweep_over_coco(
    inception, inception_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("imagen_jax.sampling.cascade.drawing_devices", lambda: jax.local_devices()[:1])
    for module in (networks, scoring):  # The program that other tests compiled.
        monkeypatch.setattr(module, "BATCH", 4)
    coco, clip_folder = write_coco(tmp_path / "coco", 5), _clip_folder(tmp_path / "clip")
    settings = {
        "RUN_DIR": "unused",
        "OUTPUT_DIR": str(tmp_path / "sweep"),
        "COCO_DIR": str(coco),
        "INCEPTION_PATH": inception_file,
        "CLIP_PATH": str(clip_folder),
        "GUIDANCE_WEIGHTS": (2.0,),
        "AUG_LEVELS": (0.0, 0.3),
        "prompts.CocoPrompts.num_images": 4,
        "sr/plan.StageGrid.stage": "sr",
    }
    bindings = [f"{name}={value!r}" for name, value in settings.items()]
    config = gin_config.load(SweepConfig, ["configs/runs/coco_fid30k.gin"], bindings)
    cascade = untrained_cascade()
    told = dry_run(config, cascade)
    assert "12 to draw, 0 there already" in told and "seconds         unknown" in told
    # 4 pictures of 8 pixels a side and 8 of 16, three bytes each, before any was seen.
    assert f"bytes to come   {3 * (4 * 8**2 + 8 * 16**2)}" in told
    result = run_sweep(config, "imagen_jax sweep", cascade)
    said = capsys.readouterr().out
    assert "COCO val2014: 5 images with 6 captions" in said and "biased upwards" in said
    told = dry_run(config, cascade)
    assert "0 to draw, 12 there already" in told and "seconds         about 0" in told and "bytes to come   0" in told
    protocol, clip = PROTOCOLS["imagen_30k"], load_extractor(clip_folder, batch_size=4)
    prompts = config.prompts.read()
    theirs = _features(inception, sorted((coco / "val2014").iterdir()))
    assert len(theirs) == 5
    for point in result["points"]:
        files = sorted((tmp_path / "sweep" / "images" / point["key"]).rglob("*.png"))
        assert point["scores"]["fid"] == pytest.approx(frechet_distance(_features(inception, files), theirs), rel=1e-4)
        images = np.stack([protocol.at_size(np.asarray(Image.open(path).convert("RGB"))) for path in files])
        cosines = (clip.image_features(images) * clip.text_features(prompts.prompts)).sum(axis=1)
        assert point["scores"]["clip_score"] == pytest.approx(100 * np.maximum(cosines, 0).mean(), rel=1e-4, abs=1e-4)
        assert len(point["samples"]) == 4
    assert result["points"][0]["scores"]["fid"] != result["points"][1]["scores"]["fid"]
    page = Path(write_sweep_page(config.output_dir)).read_text()
    for words in ("FID against CLIP score", "FID by aug_level of sr", protocol.source.partition(":")[0], "all, best"):
        assert words in page
    assert prompts.about["captions"]["sha256"] in page and inception.fingerprint in page


def _features(inception, files: list[Path]) -> np.ndarray:
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in files]
    pixels = np.stack([PROTOCOLS["imagen_30k"].prepare(one) for one in pictures])
    return inception.features_of_resized(pixels)["2048"]
