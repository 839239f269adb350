"""Folders of drawn images: gone on with bit by bit, kept where they are, refused where they are of something else."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.evals.drawn_images import DrawnItem, StageSettings, draw_missing, with_settings
from imagen_jax.sampling.cascade import Cascade
from tests.untrained import untrained_cascade

ITEMS = [DrawnItem(prompt=f"prompt {i % 3}", seed=i // 3, name=f"{i // 2:02d}/{i % 2}.png") for i in range(7)]


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return with_settings(untrained_cascade(), {"base": StageSettings(guidance_weight=2.0)})


@pytest.fixture(scope="module")
def whole(cascade: Cascade, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    drawn = list(draw_missing(cascade, ITEMS, str(folder), batch_size=3))
    assert [one.number for one in drawn] == list(range(7))
    for one in drawn:
        np.testing.assert_array_equal(np.asarray(Image.open(one.path)), one.pixels)
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def test_each_image_differs_and_tells_its_prompt_and_seed(whole: Path) -> None:
    files = _files(whole)
    assert sorted(files) == sorted(item.name for item in ITEMS) and len(set(files.values())) == 7
    with Image.open(whole / "02" / "0.png") as image:
        assert image.text == {"prompt": "prompt 1", "seed": "1"}


def test_a_list_that_was_stopped_goes_on_with_the_same_bits(cascade: Cascade, whole: Path, tmp_path: Path) -> None:
    part = draw_missing(cascade, ITEMS, str(tmp_path), batch_size=3)
    next(part)
    part.close()
    assert len(_files(tmp_path)) == 1
    kept = (tmp_path / "00" / "0.png").stat().st_mtime_ns
    assert [one.number for one in draw_missing(cascade, ITEMS, str(tmp_path), batch_size=3)] == list(range(1, 7))
    assert (tmp_path / "00" / "0.png").stat().st_mtime_ns == kept
    assert _files(tmp_path) == _files(whole)
    assert list(draw_missing(cascade, ITEMS, str(tmp_path), batch_size=3)) == []


def test_an_image_does_not_depend_on_its_place_or_its_neighbours(cascade: Cascade, whole: Path, tmp_path: Path) -> None:
    (one,) = draw_missing(cascade, ITEMS, str(tmp_path), rows=[5], batch_size=3)
    assert one.number == 5
    alone, among = one.pixels.astype(int), np.asarray(Image.open(whole / ITEMS[5].name), int)
    assert np.abs(alone - among).max() <= 1


def test_a_folder_of_other_settings_or_another_list_is_refused(cascade: Cascade, whole: Path, tmp_path: Path) -> None:
    files = _files(whole)
    other = with_settings(cascade, {"sr": StageSettings(aug_level=0.5)})
    with pytest.raises(UserError, match="stages in drawn.json differ"):
        list(draw_missing(other, ITEMS, str(whole)))
    with pytest.raises(UserError, match="items in drawn.json differ"):
        list(draw_missing(cascade, ITEMS[:-1], str(whole)))
    assert _files(whole) == files
    (tmp_path / "mine.png").write_bytes(b"")
    with pytest.raises(UserError, match="holds images and no drawn.json"):
        list(draw_missing(cascade, ITEMS, str(tmp_path)))
    record = json.loads((whole / "drawn.json").read_text())
    assert [stage["settings"]["guidance_weight"] for stage in record["stages"]] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": StageSettings(aug_level=0.1)}, "draws from noise alone"),
        ({"base": StageSettings(sampler="euler")}, "must be one of ddpm"),
        ({"top": StageSettings()}, "which the cascade has not"),
        ({"sr": StageSettings(guidance_weight=-1.0)}, "guidance_weight"),
    ],
)
def test_settings_that_do_not_fit_are_refused(cascade: Cascade, settings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_settings(cascade, settings)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a.jpg", "a//b.png"])
def test_names_stay_in_the_folder(name: str) -> None:
    with pytest.raises(UserError, match="relative path"):
        DrawnItem(prompt="", seed=0, name=name)
