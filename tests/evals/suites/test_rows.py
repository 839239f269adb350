"""Suites' files: what each holds, and bad rows named by file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals.suites.layouts import LAYOUTS

GENEVAL = {"tag": "colors", "include": [{"class": "cube", "count": 1, "color": "red"}], "prompt": "a photo of a cube"}
GENEVAL2 = {
    "prompt": "two red cubes",
    "atom_count": 3,
    "vqa_list": [["How many cubes are in the image?", "two"], ["Are the cubes red?", "Yes"], ["Any cubes?", "Yes"]],
    "skills": ["count", "attribute", "object"],
}


def read(kind: str, path: Path, content: str | bytes) -> list[tuple[str, str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row.prompt, row.category) for row in LAYOUTS[kind].read(str(path))]


def with_field(fields: dict[str, Any], name: str, value: Any) -> str:
    return json.dumps({**fields, name: value})


def test_drawbench_with_quotes_commas_line_ends_and_a_mark(tmp_path):
    text = (
        '\ufeffPrompts,Category\r\nA red car.,Colors\r\n"A sign, that says ""Hi"".",Text\r\n\r\n"Two\nlines",Reddit\r\n'
    )
    assert read("drawbench", tmp_path / "d.csv", text) == [
        ("A red car.", "Colors"),
        ('A sign, that says "Hi".', "Text"),
        ("Two\nlines", "Reddit"),
    ]


def test_parti_whose_quotes_are_text(tmp_path):
    # As the published file has them: a prompt that begins with a quotation mark, blanks around prompts, empty notes.
    text = 'Prompt\tCategory\tChallenge\tNote\n"G I G" in paint\tIllustrations\tWriting\t\n a sloth \tAnimals\tX\tn\n'
    assert read("parti", tmp_path / "p.tsv", text) == [('"G I G" in paint', "Illustrations"), ("a sloth", "Animals")]


def test_compbench_takes_a_list_as_one_category(tmp_path):
    assert read("compbench", tmp_path / "color_val.txt", "a red car\tx\n\na blue bird\r\n") == [
        ("a red car", "color_val"),
        ("a blue bird", "color_val"),
    ]


def test_dpg_takes_a_file_a_prompt(tmp_path):
    for name, text in (("b.txt", "a long\nprompt \n"), ("a.txt", "\ufeffé"), ("notes.md", "x")):
        (tmp_path / name).write_text(text)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.txt").write_text("c")
    rows = LAYOUTS["dpg"].read(str(tmp_path))
    assert [(row.name, row.prompt) for row in rows] == [("a", "é"), ("b", "a long\nprompt")]


def test_geneval_keeps_each_line(tmp_path):
    counting = {"tag": "counting", "include": [{"class": "cube", "count": 2}],
                "exclude": [{"class": "cube", "count": 3}], "prompt": "two cubes"}  # fmt: skip
    position = {"tag": "position", "prompt": "p", "include": [
        {"class": "ring", "count": 1}, {"class": "cube", "count": 1, "position": ["left of", 0]}]}  # fmt: skip
    lines = [json.dumps(one) for one in (GENEVAL, counting, position)]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    rows = LAYOUTS["geneval"].read(str(path))
    assert [row.line for row in rows] == lines
    assert [(row.prompt, row.category) for row in rows][1:] == [("two cubes", "counting"), ("p", "position")]


def test_geneval2_is_counted_by_atoms(tmp_path):
    assert read("geneval2", tmp_path / "g.jsonl", json.dumps(GENEVAL2)) == [("two red cubes", "3")]


@pytest.mark.parametrize(
    ("kind", "content", "place", "problem"),
    [
        ("drawbench", "", 1, "0 columns Prompts"),
        ("drawbench", "Prompt,Category\na,b\n", 1, "0 columns Prompts"),
        ("drawbench", "Prompts,Category,Category\na,b,c\n", 1, "2 columns Category"),
        ("drawbench", 'Prompts,Category\na,b\n"two\nlines",c\nd\n', 5, "1 fields, the header has 2"),
        ("drawbench", "Prompts,Category\na,b\n ,b\n", 3, "no prompt"),
        ("drawbench", 'Prompts,Category\na,b\nd,e\n"open,b\nf,g\n', 4, "quotation marks"),
        ("drawbench", 'Prompts,Category\n"a"x,b\n', 2, "quotation marks"),
        ("drawbench", b"Prompts,Category\na,b\n\xe9,b\n", 3, "0xe9 is not UTF-8"),
        ("drawbench", "Prompts,Category\na,b".encode("utf-16"), 1, "not UTF-8"),
        ("parti", "Prompt\tCategory\tChallenge\tNote\na\tb\tc\t\nx\ty\n", 3, "2 fields, the header has 4"),
        ("parti", "Prompt\tCategory\n\tb\n", 2, "no prompt"),
        ("compbench", "a\n\tb\n", 2, "no prompt"),
        ("geneval", json.dumps(GENEVAL) + "\n{", 2, "not JSON"),
        ("geneval", "[" * 100_000, 1, "not JSON"),
        ("geneval", "[1]", 1, "not a JSON object"),
        ("geneval", with_field(GENEVAL, "tag", 3), 1, "tag is 3, expected a text"),
        ("geneval", with_field(GENEVAL, "prompt", "\ud800"), 1, "half a character"),
        ("geneval", with_field(GENEVAL, "include", []), 1, "include must be a list"),
        ("geneval", with_field(GENEVAL, "include", [{"class": "a"}]), 1, "count is nothing, expected a whole number"),
        ("geneval", with_field(GENEVAL, "include", [{"class": "a", "count": True}]), 1, "count is True"),
        ("geneval", with_field(GENEVAL, "include", [{"class": "a", "count": -1}]), 1, "count is negative"),
        ("geneval", with_field(GENEVAL, "exclude", "x"), 1, "exclude must be a list"),
        (
            "geneval",
            with_field(GENEVAL, "include", [{"class": "a", "count": 1, "position": ["left of", 0]}]),
            1,
            "earlier clause",
        ),
        ("geneval2", with_field(GENEVAL2, "atom_count", "3"), 1, "atom_count is '3', expected a whole number"),
        ("geneval2", with_field(GENEVAL2, "vqa_list", [["a"]]), 1, "pairs of question and answer"),
        ("geneval2", with_field(GENEVAL2, "skills", ["count"]), 1, "3 texts, one a question"),
    ],
)
def test_a_bad_row_is_named(tmp_path, kind, content, place, problem):
    path = tmp_path / "suite.txt"
    with pytest.raises(UserError) as error:
        read(kind, path, content)
    assert str(error.value).startswith(f"{path} line {place}") and problem in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["compbench", "geneval", "geneval2", "drawbench", "parti"])
def test_a_file_without_prompts_or_that_is_not_there_is_refused(tmp_path, kind):
    header = {"drawbench": "Prompts,Category\n", "parti": "Prompt\tCategory\n"}.get(kind, "\n")
    with pytest.raises(UserError, match="has no prompts"):
        read(kind, tmp_path / "s.txt", header)
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            LAYOUTS[kind].read(str(path))


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.b.txt", "x", "first dot"),
        ("a.txt", " ", "no prompt"),
        ("a.txt", "\xe9", "line 1: byte 0xe9"),
        ("a", "", "no folder"),
    ],
)
def test_a_bad_file_of_dpg_is_named(tmp_path, name, text, problem):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=problem) as error:
        LAYOUTS["dpg"].read(str(tmp_path))
    assert str(tmp_path) in str(error.value)
