"""Agreement against published figures and closed forms; preferences of votes that are known."""

import json

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.main import main
from imagen_jax.ratings.agreement import krippendorff_alpha
from imagen_jax.ratings.analysis import analyse_study
from imagen_jax.ratings.build import build_study
from imagen_jax.ratings.log import Rating, RatingChecks
from imagen_jax.ratings.study import RATINGS_FILE, read_study, session
from imagen_jax.report.card_scores import read_measured

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example C: four observers, twelve units.
PUBLISHED = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]


@pytest.mark.parametrize(("distance", "alpha"), [("nominal", 0.743), ("interval", 0.849)])
def test_alpha_of_the_published_example(distance, alpha):
    rows = [row.split() for row in PUBLISHED]
    units = [[int(row[unit]) for row in rows if row[unit] != "."] for unit in range(12)]
    assert krippendorff_alpha(units, distance) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_two_raters_is_scott_s_pi_for_small_samples():
    """Krippendorff: alpha = 1 - (1 - pi) (2 n - 1) / (2 n), for two raters, n units and no gaps."""
    rng = np.random.default_rng(0)
    units = rng.integers(3, size=(30, 2))
    agreed = np.mean(units[:, 0] == units[:, 1])
    chance = sum(np.mean(units == value) ** 2 for value in range(3))
    pi = (agreed - chance) / (1 - chance)
    assert krippendorff_alpha(units.tolist()) == pytest.approx(1 - (1 - pi) * 59 / 60)


def test_alpha_at_its_ends():
    assert krippendorff_alpha([[1, 1], [2, 2, 2], [3]]) == 1.0
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1], [2]]) is None
    rng = np.random.default_rng(1)
    assert abs(krippendorff_alpha(rng.integers(3, size=(2000, 5)).tolist())) < 0.02
    with pytest.raises(UserError, match="nominal"):
        krippendorff_alpha([[1, 1]], "ordinal")


def write(folder, study, choose, raters=3):
    """Ratings whose answers `choose(rater, item, question, model on the left)` gives."""
    key = json.loads((folder / "key.json").read_text())
    checks = RatingChecks(study)
    with (folder / RATINGS_FILE).open("ab") as file:
        for rater in range(raters):
            for item, left in session(study, f"r{rater}"):
                models = key["items"][item.name]["models"]
                for question in item.questions:
                    answer = choose(rater, item, question, models[left or 0])
                    file.write(checks.write(Rating(f"r{rater}", item.name, question, answer, left)))


def test_preferences_majorities_and_categories(study):
    """In fidelity two of three raters prefer the first model; in alignment all do for Colors, none for Counting."""
    found, key = read_study(study), json.loads((study / "key.json").read_text())

    def choose(rater, item, question, on_left):
        if question == "fidelity":
            wanted = 0 if rater < 2 else -1
        else:
            wanted = 0 if key["items"][item.name]["category"] == "Colors" else 1
        return "same" if wanted == -1 else "left" if on_left == wanted else "right"

    write(study, found, choose)
    assert main(["analyse_study", f"--study={study}"]) == 0
    results = json.loads((study / "ratings.json").read_text())
    assert (results["num_ratings"], results["num_raters"], results["models"]) == (36, 3, ["imagen", "other"])
    fidelity = results["questions"]["fidelity"]["categories"]
    assert list(fidelity) == ["all", "Colors", "Counting"]
    assert fidelity["all"]["first"] == pytest.approx({"value": 2 / 3, "low": 2 / 3, "high": 2 / 3, "majorities": 6})
    assert fidelity["all"]["indifferent"]["value"] == pytest.approx(1 / 3)
    alignment = results["questions"]["alignment"]
    assert alignment["alpha"] == 1.0
    assert alignment["categories"]["Colors"]["first"] == {"value": 1.0, "low": 1.0, "high": 1.0, "majorities": 3}
    assert alignment["categories"]["Counting"]["second"]["value"] == 1.0
    whole = alignment["categories"]["all"]["first"]
    assert whole["value"] == 0.5 and whole["low"] < 0.5 < whole["high"]
    page = (study / "ratings.html").read_text()
    assert "66.7%" in page and "Counting" in page and "<script" not in page


def test_the_interval_is_the_binomial_one_where_prompts_have_one_vote(folders, tmp_path):
    from tests.ratings.studies import draw

    two = [draw(tmp_path / name, seed, num_prompts=100, num_samples=1, size=4) for name, seed in (("a", 0), ("b", 1))]
    study = build_study(two, tmp_path / "study")
    write(tmp_path / "study", study, lambda rater, item, question, left: "left" if left == 0 else "right", raters=1)
    lines = (tmp_path / "study" / RATINGS_FILE).read_text().splitlines(keepends=True)
    turned = [line.replace('"left",', '"x",').replace('"right",', '"left",').replace('"x",', '"right",')
              if number < 60 else line for number, line in enumerate(lines)]  # fmt: skip
    (tmp_path / "study" / RATINGS_FILE).write_text("".join(turned))
    analyse_study(tmp_path / "study")
    results = json.loads((tmp_path / "study/ratings.json").read_text())
    first = results["questions"]["fidelity"]["categories"]["all"]["first"]
    assert first["value"] == 0.7
    half = 1.96 * np.sqrt(0.7 * 0.3 / 100)
    assert [first["low"], first["high"]] == pytest.approx([0.7 - half, 0.7 + half], abs=0.02)


def test_the_coco_study_scores_both_kinds_of_image(folders, tmp_path):
    """Generated images are somewhat right, real ones are; a quarter of the votes takes the generated for real."""
    study = build_study(folders, tmp_path / "study", real=True, num_prompts=4)
    key = json.loads((tmp_path / "study/key.json").read_text())

    def choose(rater, item, question, model):
        if question == "caption":
            return ("somewhat", "yes")[model]
        return "left" if (model == 0) == (rater == 0) else "right"

    write(tmp_path / "study", study, choose, raters=4)
    analyse_study(tmp_path / "study")
    questions = json.loads((tmp_path / "study/ratings.json").read_text())["questions"]
    (card,), _ = read_measured(tmp_path / "study", "")
    assert {row[0] for row in card.rows} == set(questions) and {len(row) for row in card.rows} == {len(card.header)}
    assert sorted(questions) == ["caption, imagen", "caption, other", "photorealism"]
    assert questions["caption, imagen"]["categories"]["all"]["score"]["value"] == 50
    assert questions["caption, other"]["categories"]["all"]["score"]["value"] == 100
    real = questions["photorealism"]["categories"]
    assert real["all"]["first"]["value"] == 0.25 and real["all"]["second"]["majorities"] == 4
    wanted = {one["category"] for one in key["items"].values()}
    assert set(real) == {"all"} | wanted


def test_files_of_raters_are_joined_and_second_answers_counted(study, tmp_path):
    found = read_study(study)
    write(study, found, lambda *_: "left")
    sent = tmp_path / "sent.jsonl"
    lines = (study / RATINGS_FILE).read_text().splitlines(keepends=True)
    sent.write_text(lines[0] + lines[1].replace('"answer": "left"', '"answer": "same"') + lines[2] + '{"study"')
    assert main(["analyse_study", f"--study={study}", "--ratings", str(sent)]) == 0
    results = json.loads((study / "ratings.json").read_text())
    assert (results["num_ratings"], results["num_repeated"]) == (36, 1)
    assert results["left_share"] == 1.0


def test_what_cannot_be_analysed_is_refused(study, tmp_path, capsys):
    words = ["analyse_study", f"--study={study}"]
    assert main(words) == 2
    assert main([*words, "--ratings", str(tmp_path / "none")]) == 2
    (tmp_path / "foreign").write_text('{"study": "0"}\n')
    assert main([*words, "--ratings", str(tmp_path / "foreign")]) == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert not (study / "ratings.json").exists()
