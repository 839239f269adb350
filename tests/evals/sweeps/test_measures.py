"""Any metric by name in a sweep over COCO's captions: `imagen_jax eval` gives the same figures of the same images."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals import networks, scoring
from imagen_jax.evals.image_scores import ImageScores
from imagen_jax.evals.sweeps import measures
from imagen_jax.evals.sweeps.measures import Measures
from imagen_jax.evals.sweeps.plan import StageGrid
from imagen_jax.evals.sweeps.prompts import CocoPrompts, FilePrompts
from imagen_jax.evals.sweeps.sweep import SweepConfig, run_sweep
from imagen_jax.report.sweep import write_sweep_page
from imagen_jax.sampling.cascade import Cascade
from tests.evals.sweeps.tiny_coco import write_coco
from tests.evals.test_scoring import networks as stand_ins
from tests.untrained import untrained_cascade

ALL = Measures(metrics=tuple(scoring.METRICS), inception_path="inception", clip_path="clip", dinov2_path="dinov2")
GRIDS = (StageGrid(stage="sr", aug_level=(0.0, 0.3)),)
ONE = (StageGrid(stage="sr", aug_level=(0.3,)),)


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return untrained_cascade()


@pytest.fixture(autouse=True)
def cheap_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of stand-in features, each by its kind in place of a path; one device draws."""
    monkeypatch.setattr("imagen_jax.sampling.cascade.drawing_devices", lambda: jax.local_devices()[:1])
    made = {one.kind: one for one in stand_ins()}
    monkeypatch.setattr(networks, "load_extractor", lambda path, batch_size: made[path])


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """What a sweep gathered features of, and for which metrics."""
    calls: list[tuple[str, tuple[str, ...]]] = []

    def noted(images: Any, names: Any, *args: Any, **options: Any) -> Any:
        calls.append((options["label"], tuple(names)))
        return scoring.gather(images, names, *args, **options)

    monkeypatch.setattr(measures, "gather", noted)
    return calls


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO, and beside it the folder of the sweep that the tests go on with."""
    folder = tmp_path_factory.mktemp("sweeps")
    write_coco(folder / "coco")
    return folder


def _config(folder: Path, **changes: Any) -> SweepConfig:
    settings = {"prompts": CocoPrompts(folder=str(folder / "coco"), num_images=12), "grids": GRIDS, "measures": ALL}
    places = {"run_dir": "unused", "output_dir": str(folder / "sweep")}
    return SweepConfig(**{**places, **settings, "batch_size": 8, **changes})


def _scored_by_eval(folder: Path, key: str, protocol: str) -> dict[str, Any]:
    """The figures that `eval` gives of a point's images, with their captions."""
    images = folder / "sweep" / "images" / key
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    captions = _config(folder).prompts.read().prompts
    (folder / "captions.json").write_text(json.dumps(dict(zip(names, captions, strict=True))))
    ImageScores(
        generated_dir=str(images),
        reference_dir=str(folder / "coco" / "val2014"),
        weights_path="inception",
        clip_path="clip",
        dinov2_path="dinov2",
        metrics=ALL.metrics,
        protocols=(protocol,),
        captions_path=str(folder / "captions.json"),
    ).evaluate(None, str(folder / "eval"))
    (row,) = json.loads((folder / "eval" / "image_scores.json").read_text())["scores"]
    return row


def test_every_metric_is_the_one_that_eval_gives_and_only_what_changed_is_computed(
    cascade: Cascade, folder: Path, gathered
) -> None:
    two = dataclasses.replace(ALL, metrics=("fid", "clip_score"))
    first = run_sweep(_config(folder, measures=two, grids=ONE), cascade=cascade)
    assert sorted(gathered) == [("features", ("fid", "clip_score")), ("reference", ("fid",))]
    gathered.clear()
    result = run_sweep(_config(folder), "imagen_jax sweep", cascade)
    assert {names for label, names in gathered if label == "reference"} == {
        tuple(name for name, one in scoring.METRICS.items() if one.paired and name != "fid")
    }
    added = tuple(name for name in scoring.METRICS if name not in two.metrics)
    assert [names for label, names in gathered if label == "features"] == [ALL.metrics, added]
    gathered.clear()
    assert run_sweep(_config(folder), "imagen_jax sweep", cascade) == result and not gathered
    for point in result["points"]:
        row = _scored_by_eval(folder, point["key"], "imagen_30k")
        expected = {name: row[name] for name in row if isinstance(row[name], float)}
        assert {"fid", "kid_std", "recall", "coverage", "r_precision", "cmmd"} <= expected.keys()
        assert point["scores"] == {name: float(f"{value:.6g}") for name, value in expected.items()}
        assert point["warnings"] == [one for one in row["warnings"] if "protocol's" not in one]
    assert first["points"][0]["scores"].keys() == {"fid", "clip_score", "clip_score_low", "clip_score_high"}
    (header, *rows) = csv.reader(io.StringIO((folder / "sweep" / "sweep.csv").read_text()))
    assert {"fid", "precision", "vendi"} <= set(header) and len(rows) == 2
    page = Path(write_sweep_page(str(folder / "sweep"))).read_text()
    for words in ("FID against CLIP score", "KID by aug_level of sr", "recall by aug_level of sr"):
        assert words in page
    assert "all, best" in page and "all, worst" in page


def test_another_protocol_or_reference_is_scored_anew(cascade: Cascade, folder: Path, gathered) -> None:
    """The captions of both protocols are the same, and so are the images that are drawn."""
    fid = Measures(metrics=("fid",), inception_path="inception")
    first = run_sweep(_config(folder, measures=fid, grids=ONE), cascade=cascade)
    other = CocoPrompts(folder=str(folder / "coco"), num_images=12, protocol="clean_fid_30k")
    second = run_sweep(_config(folder, measures=fid, grids=ONE, prompts=other), cascade=cascade)
    for one, two in zip(first["points"], second["points"], strict=True):
        assert one["key"] == two["key"] and one["scores"] != two["scores"]
        row = _scored_by_eval(folder, two["key"], "clean_fid_30k")
        assert two["scores"]["fid"] == float(f"{row['fid']:.6g}")
    gathered.clear()
    picture = folder / "coco" / "val2014" / "COCO_val2014_000000000003.jpg"
    content = picture.read_bytes()
    picture.write_bytes((folder / "coco" / "val2014" / "COCO_val2014_000000000004.jpg").read_bytes())
    run_sweep(_config(folder, measures=fid, grids=ONE), cascade=cascade)
    assert [label for label, _ in gathered] == ["features", "reference"]
    picture.write_bytes(content)


def test_settings_that_do_not_fit_are_refused_before_anything_is_drawn(cascade: Cascade, tmp_path: Path) -> None:
    for settings, message in (
        ({"metrics": ("fidd",)}, "'fidd' is unknown"),
        ({"metrics": ("fid",)}, r"names 'fid', and Measures\.inception_path is not given"),
        ({"metrics": ("fid", "cmmd"), "inception_path": "x"}, r"Measures\.clip_path is not given"),
        ({"clip_path": "x"}, r"Measures\.clip_path \(x\) is given, and Measures\.metrics is empty"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Measures(**settings)
        assert "\n" not in str(error.value)
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    prompts = FilePrompts(path=str(tmp_path / "prompts.txt"))
    with pytest.raises(UserError, match="'fid' compares with a reference, and these prompts have none"):
        run_sweep(_config(tmp_path, prompts=prompts), cascade=cascade)
    wrong = dataclasses.replace(ALL, clip_path="dinov2")
    with pytest.raises(UserError, match=r"Measures\.clip_path \(dinov2\) holds dinov2; expected clip"):
        wrong.load()
    assert not (tmp_path / "sweep").exists()
