"""The shapes suites, on pictures drawn by rule: right ones score 1, one wrong atom of n costs exactly 1 / n."""

import json
import re

import numpy as np
import pytest

from imagen_jax.data.shapes_scene import COLOURS, HELDOUT, SHAPES
from imagen_jax.evals.shapes_judge import read
from imagen_jax.evals.suites.shapes_prompts import MAX_ATOMS, TASKS, atom_rows, geneval_rows
from imagen_jax.evals.suites.shapes_scores import atom_scores, geneval_result, geneval_verdict
from imagen_jax.evals.suites.summaries import geneval_summary, soft_tifa_summary
from tests.evals.suites.painting import Related, Wanted, of_atoms, of_metadata, other_colour, other_shape, picture

GENEVAL, ATOMS = geneval_rows(0, 6), atom_rows(0, 6)
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def turned(related: Related) -> Related:
    """The first relation the wrong way round."""
    (first, relation, second), *rest = related
    return [(first, OPPOSITE[relation], second), *rest]


def test_prompts_are_different_fixed_and_hold_no_held_out_pair():
    for rows in (GENEVAL, ATOMS):
        texts = [row.prompt for row in rows]
        assert len(set(texts)) == len(texts) == 36 + 24 * (rows is ATOMS)
        for text in texts:
            assert not HELDOUT.intersection(re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text)), text
    assert geneval_rows(0, 3)[:3] == GENEVAL[:3] != geneval_rows(1, 3)[:3]
    assert [row.category for row in GENEVAL[::6]] == list(TASKS)
    # There are six shapes, and so six prompts of one atom.
    assert len(atom_rows(0, 8)) == 6 + 9 * 8


def test_a_prompt_says_what_its_atoms_are():
    for row in ATOMS:
        fields = row.fields
        atoms = fields["atoms"]
        assert (
            len(atoms) == fields["atom_count"] == len(fields["vqa_list"]) == len(fields["skills"]) == int(row.category)
        )
        words = re.findall(r"[a-z]+", row.prompt)
        for atom in atoms:
            assert atom["shape"] in row.prompt
            if atom["skill"] == "attribute":
                assert words[words.index(atom["colour"]) + 1].startswith(atom["shape"])
            if atom["skill"] == "position":
                words_between = rf"{atom['shape']} (to the )?{atom['relation']}( of)? an? [a-z]+ {atom['of']}"
                assert re.search(words_between, row.prompt), row.prompt
            if atom["skill"] == "count":
                assert {2: "two", 3: "three", 4: "four"}[atom["count"]] == words[0]
        said = len([word for word in words if word in COLOURS]) + len(re.findall("|".join(SHAPES), row.prompt))
        said += len(re.findall("left of|right of|above|below", row.prompt)) + len(
            re.findall("two|three|four", row.prompt)
        )
        assert said == len(atoms), row.prompt
    assert {int(row.category) for row in ATOMS} == set(range(1, MAX_ATOMS + 1))


def test_right_pictures_score_one():
    results = []
    for number, row in enumerate(GENEVAL):
        reading = read(picture(*of_metadata(row.fields), seed=number))
        results.append(geneval_result("x.png", reading, row.fields))
        assert results[-1]["correct"], (row.prompt, results[-1]["reason"])
    summary = geneval_summary(results)
    assert summary["tasks"] == dict.fromkeys(TASKS, 1.0) and summary["overall"] == summary["correct_prompts"] == 1.0
    scores = [atom_scores(read(picture(*of_atoms(row.fields["atoms"]), seed=i)), row.fields["atoms"])
              for i, row in enumerate(ATOMS)]  # fmt: skip
    assert scores == [[1.0] * int(row.category) for row in ATOMS]


def damages(objects: Wanted, related: Related, atoms: list[dict]) -> dict[str, tuple[Wanted, Related]]:
    """Pictures with one atom wrong, by its skill."""
    made = {}
    if any(atom["skill"] == "attribute" for atom in atoms):
        shape = objects[-1][1]
        made["attribute"] = ([(other_colour(objects), s) if s == shape else (c, s) for c, s in objects], related)
    if related:
        made["position"] = (objects, turned(related))
    if any(atom["skill"] == "count" for atom in atoms):
        made["count"] = (objects[1:], related)
    if len(atoms) == 1:
        made["object"] = ([(objects[0][0], other_shape(objects))], related)
    return made


def test_one_wrong_atom_of_n_costs_one_nth():
    tried = []
    for number, row in enumerate(ATOMS):
        atoms = row.fields["atoms"]
        for skill, wrong in damages(*of_atoms(atoms), atoms).items():
            scores = atom_scores(read(picture(*wrong, seed=number)), atoms)
            assert [one["skill"] for one, score in zip(atoms, scores, strict=True) if not score] == [skill], row.prompt
            summary = soft_tifa_summary([scores], [len(atoms)], [row.fields["skills"]])
            assert summary["am"] == pytest.approx(1 - 1 / len(atoms), abs=1e-12) and summary["gm"] == 0.0
            tried.append((len(atoms), skill))
    assert {count for count, _ in tried} == set(range(1, MAX_ATOMS + 1))
    assert {skill for _, skill in tried} == {"object", "attribute", "count", "position"}


def test_a_missing_object_takes_with_it_what_is_said_of_it():
    row = next(row for row in ATOMS if row.category == "10")
    objects, related = of_atoms(row.fields["atoms"])
    image = picture(objects, related)
    blank = picture(objects, [])  # Another background is no matter.
    assert atom_scores(read(blank * 0), row.fields["atoms"]) == [0.0] * 10
    assert sum(atom_scores(read(image), row.fields["atoms"])) == 10
    # Its shape, its colour and its relation.
    assert sum(atom_scores(read(picture(objects[:3], related[:1])), row.fields["atoms"])) == 7


def verdict(objects: Wanted, metadata: dict, related: Related = []) -> tuple[bool, str]:  # noqa: B006
    return geneval_verdict(read(picture(objects, related)), metadata)


def test_geneval_clauses():
    one = {"include": [{"class": "cube", "count": 1}]}
    assert verdict([("red", "cube")], one) == (True, "")
    # Further objects do no harm, unless they are excluded.
    assert verdict([("red", "cube"), ("blue", "ring"), ("green", "cube")], one)[0]
    counted = {"include": [{"class": "cube", "count": 2}], "exclude": [{"class": "cube", "count": 3}]}
    assert verdict([("red", "cube")] * 2, counted)[0]
    assert verdict([("red", "cube")] * 3, counted) == (False, "expected cube<3, found 3")
    assert verdict([("red", "cube")], counted) == (False, "expected cube>=2, found 1")
    both = {"include": [{"class": "cube", "count": 1, "color": "red"}, {"class": "ring", "count": 1, "color": "blue"}]}
    assert verdict([("red", "cube"), ("blue", "ring")], both)[0]
    assert verdict([("blue", "cube"), ("red", "ring")], both) == (
        False,
        "expected red cube>=1, found 0\nexpected blue ring>=1, found 0",
    )
    place = {"include": [{"class": "ring", "count": 1}, {"class": "cube", "count": 1, "position": ["left of", 0]}]}
    pair = [("red", "cube"), ("blue", "ring")]
    assert verdict(pair, place, [(0, "left", 1)])[0]
    for relation in ("right", "above", "below"):
        assert verdict(pair, place, [(0, relation, 1)]) == (False, "expected cube left of target")
    assert verdict(pair[:1], place) == (False, "expected ring>=1, found 0\nno target for cube to be left of")


def test_a_result_has_the_fields_of_genevals():
    row = GENEVAL[0]
    result = geneval_result("samples/00000/samples/0000.png", read(np.zeros((64, 64, 3), np.uint8)), row.fields)
    assert list(result) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert result["correct"] is False and json.loads(result["metadata"]) == row.fields
    assert json.loads(result["details"]) == {}


def test_geneval_means_over_tasks_not_over_images():
    results = [
        {"tag": tag, "correct": correct, "metadata": name}
        for tag, correct, name in (("a", True, "1"), ("a", False, "1"), ("a", False, "2"), ("b", True, "3"))
    ]
    summary = geneval_summary(results)
    assert summary["tasks"] == {"a": pytest.approx(1 / 3), "b": 1.0} and summary["overall"] == pytest.approx(2 / 3)
    assert summary["correct_images"] == 0.5 and summary["correct_prompts"] == pytest.approx(2 / 3)


def test_soft_tifa_by_hand():
    summary = soft_tifa_summary([[0.25, 1.0], [0.5, 0.5, 0.5]], [2, 3], [["object", "count"], ["object"] * 3])
    assert summary["am"] == pytest.approx((0.625 + 0.5) / 2) and summary["gm"] == pytest.approx(0.5)
    assert summary["by_atom_count"]["2"] == {"am": 0.625, "gm": 0.5, "num_prompts": 1}
    assert summary["by_skill"] == {"count": 1.0, "object": pytest.approx(1.75 / 4)}
