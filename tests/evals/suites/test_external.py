"""Scorers of suites: commands that write or print JSON, and all that they may do instead."""

import json
import sys
from pathlib import Path

import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals.suites.external import STDERR, STDOUT, Scorer, check_places, run_scorer


def scorer(code: str, *words: str, **fields: str) -> Scorer:
    """A scorer that runs Python code."""
    return Scorer(command=(sys.executable, "-c", code, *words), **fields)


def run(one: Scorer, folder: Path) -> object:
    return run_scorer(one, str(folder), str(folder / "samples"), str(folder / "suite.csv"))


def test_it_is_told_absolute_places_and_writes_its_json(tmp_path):
    code = "import json, sys; json.dump(sys.argv[1:], open(sys.argv[3], 'w')); print('not JSON')"
    words = ("--in={samples}", "{suite}", "{output}", '$HOME; echo {"a": 1} \'')
    assert run(scorer(code, *words), tmp_path) == [
        f"--in={tmp_path}/samples",
        f"{tmp_path}/suite.csv",
        f"{tmp_path}/scorer.json",
        words[3],
    ]
    assert (tmp_path / STDOUT).read_text() == "not JSON\n"


def test_a_place_of_its_own_for_its_json_and_a_directory_to_run_in(tmp_path):
    (tmp_path / "code").mkdir()
    code = "import json, os, sys; json.dump({'at': os.getcwd()}, open(sys.argv[1] + '/../sub/r.json', 'w'))"
    one = scorer(code, "{samples}", output="sub/r.json", directory=str(tmp_path / "code"))
    (tmp_path / "samples").mkdir()
    assert run(one, tmp_path) == {"at": str(tmp_path / "code")}


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ('{"a": NaN}', {"a": None}),
        ("loading …\n[1, 2]\n", [1, 2]),
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('{\n "a":\n 1}\n', {"a": 1}),
    ],
)
def test_json_that_is_printed(tmp_path, printed, found):
    assert run(scorer(f"print({printed!r}, end='')"), tmp_path) == found


@pytest.mark.parametrize(
    ("code", "words", "problem"),
    [
        (
            "import sys; print('x\\ny\\nz\\nw', file=sys.stderr); sys.exit(3)",
            (),
            "exit code 3; its last lines: y | z | w;",
        ),
        ("import os; os.kill(os.getpid(), 9)", (), "was ended by signal 9; it said nothing"),
        ("print('BLIP-VQA score: 0.5')", (), "exit code 0 and printed no JSON"),
        ("print(0.5)", (), "exit code 0 and printed no JSON"),
        ("print('[' * 100000)", (), "printed no JSON"),
        ("pass", (), "printed no JSON"),
        ("print('{}')", ("{output}",), "exit code 0 and wrote no "),
        ("import sys; open(sys.argv[1], 'w').write('score: 1')", ("{output}",), "wrote no JSON into"),
        ("import sys; open(sys.argv[1], 'wb').write(b'\\xff')", ("{output}",), "wrote no JSON into"),
    ],
)
def test_a_scorer_without_scores_is_one_line(tmp_path, code, words, problem):
    with pytest.raises(UserError) as error:
        run(scorer(code, *words), tmp_path)
    assert problem in str(error.value) and "\n" not in str(error.value)
    assert f"the samples are in {tmp_path}" in str(error.value)
    assert (tmp_path / STDERR).exists()


def test_what_an_earlier_run_wrote_is_no_answer(tmp_path):
    (tmp_path / "scorer.json").write_text(json.dumps({"old": 1}))
    with pytest.raises(UserError, match="wrote no"):
        run(scorer("pass", "{output}"), tmp_path)


@pytest.mark.parametrize("command", [("/no/such/program",), ("{suite}",)])
def test_a_program_that_does_not_start_is_named(tmp_path, command):
    (tmp_path / "suite.csv").write_text("no program")
    with pytest.raises(UserError, match="does not start"):
        run(Scorer(command=command), tmp_path)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"command": ()}, "a program and its arguments"),
        ({"command": "python x.py"}, "a program and its arguments"),
        ({"command": ("python", "")}, "a program and its arguments"),
        ({"command": ("python", "{sample}")}, "holds {sample}; it may hold {samples}, {suite}, {output}"),
        ({"command": ("python",), "output": "../x.json"}, "Scorer.output"),
        ({"command": ("python",), "output": "/x.json"}, "Scorer.output"),
    ],
)
def test_a_command_is_checked(fields, problem):
    with pytest.raises(UserError) as error:
        Scorer(**fields)
    assert problem in str(error.value)


def test_places_in_buckets_are_refused():
    one = Scorer(command=("score", "{suite}"))
    check_places(one, "here", "suite.csv")
    check_places(Scorer(command=("score",)), "here", "gs://b/suite.csv")
    for places in (("gs://b/run", "suite.csv"), ("here", "gs://b/suite.csv")):
        with pytest.raises(UserError, match="lies in a bucket"):
            check_places(one, *places)
