"""Studies: order and sides of raters, what is built, what is refused."""

import collections
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.main import main
from imagen_jax.ratings.build import build_study
from imagen_jax.ratings.people import people_category
from imagen_jax.ratings.study import Item, Study, rater_name, read_study, session
from tests.ratings.studies import draw


def pairs(num):
    return Study("0", 5, tuple(Item(f"i{n}", n % 2, None, (("a",), ("b",)), ("fidelity",)) for n in range(num)))


@pytest.mark.parametrize("num", [1, 2, 7, 40])
def test_every_rater_sees_each_pair_once_with_balanced_sides(num):
    study = pairs(num)
    for rater in range(50):
        turns = session(study, f"rater {rater}")
        assert sorted(turn.item.name for turn in turns) == sorted(item.name for item in study.items)
        assert [turn.item.part for turn in turns] == sorted(turn.item.part for turn in turns)
        lefts = collections.Counter(turn.left for turn in turns)
        assert abs(lefts[0] - lefts[1]) <= num % 2


def test_order_and_sides_are_spread_evenly_over_raters():
    """Each pair comes at each place, and has each side, as often as chance says: chi squared, 400 raters."""
    study = pairs(8)
    places = np.zeros((8, 4))
    sides = collections.Counter()
    for rater in range(400):
        turns = session(study, f"r{rater}")
        for place, turn in enumerate(turns):
            places[int(turn.item.name[1:]), place % 4] += 1
            sides[turn.item.name, turn.left] += 1
    # 99.9 % points of 24 and of 8 degrees of freedom.
    assert ((places - 100) ** 2 / 100).sum() < 51.2
    assert sum((count - 200) ** 2 / 200 for count in sides.values()) < 26.1


def test_a_rater_s_order_stays_and_another_s_differs():
    study = pairs(20)
    assert session(study, "a") == session(study, "a") != session(study, "b")
    assert session(study, "a") != session(Study("0", 6, study.items), "a")


def test_a_built_study_tells_nothing_of_the_models(study):
    """Neither files nor their names say "imagen" or "other"; the page's program may use the words."""
    for path in sorted((study / "site").rglob("*")):
        if path.suffix == ".png":
            assert not Image.open(path).text
        if path.is_file() and path.name != "index.html":
            content = path.read_bytes() + path.name.encode()
            assert b"imagen" not in content and b"other" not in content
    key = json.loads((study / "key.json").read_text())
    firsts = [tuple(one["models"]) for one in key["items"].values()]
    assert set(firsts) == {(0, 1), (1, 0)}


def test_the_key_names_the_model_of_each_image(folders, study):
    found, key = read_study(study), json.loads((study / "key.json").read_text())
    pixels = [{Image.open(path).tobytes() for path in folder.glob("*.png")} for folder in folders]
    for item in found.items:
        for names, model in zip(item.sets, key["items"][item.name]["models"], strict=True):
            assert len(names) == 2
            assert all(Image.open(study / "site/images" / name).tobytes() in pixels[model] for name in names)


def test_photographs_are_cut_to_the_size_of_what_was_generated(folders, tmp_path):
    draw(tmp_path / "photos", 2, num_prompts=4, size=40)
    study = build_study((folders[0], tmp_path / "photos"), tmp_path / "study", real=True, num_prompts=3)
    assert {Image.open(path).size for path in (tmp_path / "study/site/images").iterdir()} == {(16, 16)}
    assert collections.Counter((item.part, item.questions) for item in study.items) == {
        (0, ("photorealism",)): 3,
        (1, ("caption",)): 6,
    }
    assert all((item.prompt is None) == (item.part == 0) for item in study.items)
    categories = {one["category"] for one in json.loads((tmp_path / "study/key.json").read_text())["items"].values()}
    assert categories <= {"people", "no people"}


@pytest.mark.parametrize(
    ("caption", "category"),
    [
        ("A man riding a wave.", "people"),
        ("Two WOMEN's bags", "people"),
        ("a manhole in Germany", "no people"),
        ("A cat on a chair", "no people"),
        ("a snow-covered park with skiers", "people"),
    ],
)
def test_people_are_told_by_whole_words(caption, category):
    assert people_category(caption) == category


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * 61, "<script>", "a\nb", "a/b", "a\0", "\ud800", None, 7, "a'b", '"', "\u202ea"]
)
def test_names_of_raters_that_are_refused(name):
    with pytest.raises(UserError):
        rater_name(name)


def test_a_rater_s_name_has_one_spelling():
    assert rater_name(" Zoe\u0308 ") == "Zo\u00eb"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "line 1"),
        ('{"name": "../a.png", "prompt": "x"}', "line 1"),
        ('{"name": "a.png"}', "line 1"),
        ("[1]", "line 1"),
        ('{"name": "gone.png", "prompt": "x"}', "gone.png"),
        ('{"name": "broken.png", "prompt": "x"}', "broken.png"),
    ],
)
def test_damaged_folders_are_refused_and_leave_no_study(tmp_path, capsys, line, part):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prompts.jsonl").write_text(line + "\n")
        (tmp_path / name / "broken.png").write_bytes(b"\x89PNG")
    words = [f"--first={tmp_path}/a", f"--second={tmp_path}/b", f"--output={tmp_path}/study"]
    assert main(["build_study", *words]) == 2
    problem = capsys.readouterr().err
    assert problem.count("\n") == 1 and part in problem
    assert not (tmp_path / "study/key.json").exists()


def test_wrong_folders_are_refused(folders, study, tmp_path):
    first, second = folders
    with pytest.raises(UserError, match="holds a study already"):
        build_study(folders, study)
    with pytest.raises(UserError, match="both folders are named"):
        build_study((first, first), tmp_path / "x")
    with pytest.raises(UserError, match="cannot be read"):
        build_study((first, tmp_path), tmp_path / "x")
    with pytest.raises(UserError, match="at most 6"):
        build_study(folders, tmp_path / "x", num_prompts=7)
    shutil.copytree(second, tmp_path / "foreign")
    text = (second / "prompts.jsonl").read_text()
    (tmp_path / "foreign/prompts.jsonl").write_text(text.replace("prompt ", "other prompt "))
    with pytest.raises(UserError, match="no prompt in common"):
        build_study((first, tmp_path / "foreign"), tmp_path / "x")


def test_a_study_is_the_same_each_time(folders, tmp_path):
    one, other = (build_study(folders, tmp_path / name, num_prompts=4, seed=9) for name in ("one", "other"))
    assert one == other
    assert build_study(folders, tmp_path / "third", num_prompts=4, seed=10) != one


def test_a_damaged_study_is_refused(study):
    path = study / "site/study.json"
    whole = path.read_text()
    for text in ("", "[]", whole[:-30], whole.replace('.png"', '/../x"'), whole.replace('"fidelity"', '"what"')):
        path.write_text(text)
        with pytest.raises(UserError, match="build the study again"):
            read_study(study)
