"""A sweep on an untrained cascade: shared images are drawn once, a kill changes no byte, two processes share it."""

import csv
import dataclasses
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals import drawn_images
from imagen_jax.evals.sweeps import sweep, units
from imagen_jax.evals.sweeps.plan import StageGrid, build_plan
from imagen_jax.evals.sweeps.prompts import ShapesPrompts
from imagen_jax.evals.sweeps.sweep import SweepConfig, dry_run, run_sweep
from imagen_jax.files import locked
from imagen_jax.image_files import decode_image
from imagen_jax.report.card_scores import read_measured
from imagen_jax.report.sweep import write_sweep_page
from imagen_jax.sampling.cascade import Cascade
from tests.untrained import untrained_cascade

GRIDS = (StageGrid(stage="base", guidance_weight=(1.0, 2.0)), StageGrid(stage="sr", aug_level=(0.0, 0.3)))
# Two base nodes and four above them, each of six images in two batches.
NUM_IMAGES, BATCH = 6 * 6, 4


class Killed(BaseException):
    """Ends a sweep as a signal does: nothing in the program catches it."""


def _config(folder: Path, **changes: Any) -> SweepConfig:
    prompts = ShapesPrompts(num_single=3, num_two=2, num_count=0, num_heldout=1)
    settings = {"prompts": prompts, "grids": GRIDS, "batch_size": BATCH, **changes}
    return SweepConfig(run_dir="unused", output_dir=str(folder / "sweep"), **settings)


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return untrained_cascade()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images in each batch that a network drew."""
    counts: list[int] = []
    stream = Cascade.stream

    def counted(self: Cascade, *args: Any, **options: Any) -> Iterator[Any]:
        for chosen, images in stream(self, *args, **options):
            counts.append(len(chosen))
            yield chosen, images

    monkeypatch.setattr(Cascade, "stream", counted)
    return counts


@pytest.fixture(scope="module")
def whole(cascade: Cascade, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run_sweep(_config(folder), "imagen_jax sweep <b>", cascade)
    return folder / "sweep"


def _tables(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "sweep.csv").read_bytes(), (folder / "sweep.json").read_bytes()


def test_the_table_has_a_row_for_each_combination(whole: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((whole / "sweep.csv").read_text())))
    settings = [(row["base.guidance_weight"], row["sr.aug_level"]) for row in rows]
    assert settings == [("1", "0"), ("1", "0.3"), ("2", "0"), ("2", "0.3")]
    assert all(0 <= float(row["matches"]) <= 1 and row["sr.sampler"] == "ddim" for row in rows)
    assert len({row["key"] for row in rows}) == 4
    assert len(list(whole.glob("images/base-*"))) == 2 and len(list(whole.glob("images/*/*/*.png"))) == NUM_IMAGES
    assert not list(whole.glob("claims/*"))


def test_a_model_card_takes_it(whole: Path) -> None:
    (card,), _ = read_measured(whole, "")
    assert len(card.rows) == 4 and {len(row) for row in card.rows} == {len(card.header)}


def test_the_page_shows_scores_samples_and_how_it_was_made(whole: Path) -> None:
    page = Path(write_sweep_page(str(whole))).read_text()
    assert "imagen_jax sweep &lt;b&gt;" in page and "checkpoint_1" in page and "aug_level of sr" in page
    assert page.count("<img") >= 2 and "single, worst" in page and "http" not in page.partition("<body")[2]


def test_a_point_is_what_the_stages_draw_by_themselves(cascade: Cascade, whole: Path) -> None:
    """The base image of a node is that of the cascade with the same weight, prompt and seed."""
    prompts = _config(whole).prompts.read()
    plain = cascade.only("base", "base").configure(lambda _, own: dataclasses.replace(own, guidance_weight=2.0))
    (images,) = plain.sample(prompts.prompts, seed=prompts.seeds, batch_size=BATCH)
    key = json.loads((whole / "sweep.json").read_text())["points"][2]["key"]
    folders = [path.parent for path in whole.glob("images/base-*/00000/drawn.json")]
    (own,) = [
        path for path in folders
        if json.loads((path / "drawn.json").read_text())["stages"][0]["settings"]["guidance_weight"] == 2.0
    ]  # fmt: skip
    found = np.stack([decode_image(own / f"{row:06d}.png") for row in range(BATCH)])
    np.testing.assert_array_equal(found, images[:BATCH])
    told = json.loads((whole / "images" / key / "00000" / "drawn.json").read_text())
    assert told["below"] == own.parent.name


def test_only_what_changed_is_drawn(cascade: Cascade, tmp_path: Path, drawn: list[int]) -> None:
    few = (GRIDS[0], StageGrid(stage="sr", aug_level=(0.3,)))
    run_sweep(_config(tmp_path, grids=few), cascade=cascade)
    assert sum(drawn) == 4 * 6
    told = dry_run(_config(tmp_path), cascade)
    assert "12 to draw, 24 there already" in told and "points          4" in told and "unknown" not in told
    run_sweep(_config(tmp_path), cascade=cascade)
    assert sum(drawn) == NUM_IMAGES
    run_sweep(_config(tmp_path), cascade=cascade)
    assert sum(drawn) == NUM_IMAGES


@pytest.mark.parametrize("moment", range(0, 62, 9))
def test_a_killed_sweep_ends_in_the_same_bytes(
    cascade: Cascade, whole: Path, tmp_path: Path, drawn: list[int], monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    written = 0

    def fail_at(module: Any, name: str) -> None:
        write = getattr(module, name)

        def writes(*args: Any, **options: Any) -> None:
            nonlocal written
            written += 1
            if written == moment + 1:
                raise Killed
            write(*args, **options)

        monkeypatch.setattr(module, name, writes)

    for module, name in (
        (drawn_images, "write_png"), (drawn_images, "write_json"), (units, "write_json"), (sweep, "write_json"),
        (sweep, "write_text"),
    ):  # fmt: skip
        fail_at(module, name)
    with pytest.raises(Killed):
        run_sweep(_config(tmp_path), cascade=cascade)
    assert not (tmp_path / "sweep" / "sweep.json").exists()
    run_sweep(_config(tmp_path), cascade=cascade)
    assert _tables(tmp_path / "sweep") == _tables(whole)
    assert sum(drawn) <= NUM_IMAGES + BATCH


def test_two_share_a_sweep_and_draw_no_image_twice(
    cascade: Cascade, whole: Path, tmp_path: Path, drawn: list[int]
) -> None:
    def work() -> None:
        with jax.default_device(jax.local_devices()[0]):
            run_sweep(_config(tmp_path), cascade=untrained_cascade())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sum(drawn) == NUM_IMAGES
    assert _tables(tmp_path / "sweep") == _tables(whole)


def test_a_unit_that_another_holds_is_waited_for(cascade: Cascade, tmp_path: Path) -> None:
    config = _config(tmp_path)
    plan = build_plan(cascade, GRIDS, config.prompts.read())
    folder = units.Folder(path=config.output_dir, prompts=config.prompts.read(), batch_size=BATCH)
    (tmp_path / "sweep" / "claims").mkdir(parents=True)
    with locked(tmp_path / "sweep" / "claims" / f"{plan.nodes[0].key}-00000.lock") as held:
        assert held and units._try(folder, units.State(folder), plan.nodes[0], 0) is None
    assert units._try(folder, units.State(folder), plan.nodes[-1], 0) is None, "the images below are missing"
    assert units._try(folder, units.State(folder), plan.nodes[0], 1) == 2


def test_a_point_that_draws_no_numbers_fails_alone(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    batch = Cascade._batch

    def damaged(self: Cascade, *args: Any) -> Any:
        wrong = np.nan if self.stages[0].sampling.guidance_weight == 5.0 else 0.0
        return [images + wrong for images in batch(self, *args)]

    monkeypatch.setattr(Cascade, "_batch", damaged)
    grids = (StageGrid(stage="base", guidance_weight=(2.0, 5.0)),)
    result = run_sweep(_config(tmp_path, grids=grids), cascade=cascade)
    assert [bool(row["failed"]) for row in result["points"]] == [False, True]
    assert "drew pictures that are no numbers" in result["points"][1]["failed"]
    assert "1 points failed" in capsys.readouterr().out
    first = _tables(tmp_path / "sweep")
    run_sweep(_config(tmp_path, grids=grids), cascade=cascade)
    assert _tables(tmp_path / "sweep") == first
    assert "no numbers" in Path(write_sweep_page(str(tmp_path / "sweep"))).read_text()


def test_what_does_not_fit_is_refused_before_anything_is_drawn(
    cascade: Cascade, whole: Path, tmp_path: Path, drawn: list[int]
) -> None:
    for grids, message in (
        ((StageGrid(stage="base", guidance_weight=(1.0, -1.0)),), "guidance_weight"),
        ((StageGrid(stage="base", aug_level=(0.1,)),), "draws from noise alone"),
        ((StageGrid(stage="top", num_steps=(2,)),), "which the cascade has not"),
        ((GRIDS[0], GRIDS[0]), "name one stage"),
    ):
        with pytest.raises(UserError, match=message):
            run_sweep(_config(tmp_path, grids=grids), cascade=cascade)
    assert not (tmp_path / "sweep").exists()
    with pytest.raises(UserError, match="is empty"):
        StageGrid(stage="base")
    with pytest.raises(UserError, match="at least one"):
        _config(tmp_path, grids=())
    other = _config(whole.parent, prompts=ShapesPrompts(num_single=1, num_two=0, num_count=0, num_heldout=0))
    with pytest.raises(UserError, match="holds another sweep: its prompts"):
        run_sweep(other, cascade=cascade)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files of something else"):
        run_sweep(_config(tmp_path), cascade=cascade)
    assert not drawn
    with pytest.raises(UserError, match="holds no sweep.json"):
        write_sweep_page(str(tmp_path))
