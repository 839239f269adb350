"""`imagen_jax sweep` on a tiny trained cascade: what the dry run says, the table, the page, a second start."""

import csv
from pathlib import Path

from imagen_jax import gin_config
from imagen_jax.evals.sweeps.sweep import SweepConfig
from imagen_jax.main import main
from tests.integration.running import one_error


def test_the_demo_sweep_in_small(root: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "sweep"
    words = ["sweep", "--gin_file=configs/experiments/demo_short_sweep.gin"]
    flags = [f"--gin.RUN_DIR={root}", f"--gin.OUTPUT_DIR={out}"]
    assert main([*words, *flags, "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert "192 to draw, 0 there already" in told and "seconds         unknown" in told and not out.exists()
    assert main([*words, *flags]) == 0
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    weights = [(row["base.guidance_weight"], row["sr.guidance_weight"]) for row in rows]
    assert weights == [(base, sr) for base in "1235" for sr in "12"]
    assert "Best and worst samples" in (out / "sweep.html").read_text()
    capsys.readouterr()
    assert main([*words, *flags, "--dry_run"]) == 0
    assert "0 to draw, 192 there already" in capsys.readouterr().out
    assert main([*words, *flags, "--gin.prompts.ShapesPrompts.seed=2"]) == 2
    assert "holds another sweep" in one_error(capsys)


def test_the_config_for_coco_is_whole() -> None:
    macros = ("RUN_DIR", "OUTPUT_DIR", "COCO_DIR", "INCEPTION_PATH", "CLIP_PATH")
    config = gin_config.load(SweepConfig, ["configs/runs/coco_fid30k.gin"], [f"{name}='x'" for name in macros])
    assert [len(grid.settings()) for grid in config.grids] == [8, 3]
    assert config.measures.inception_path == config.measures.clip_path == "x"
