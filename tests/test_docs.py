"""The pages, held to the code: every name in them exists, every example runs, no line is too long."""

import ast
import re
import sys
import types
from pathlib import Path

import pytest

from tests.mentions import Names, prose, wrong_arguments, wrong_names

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.gin"))
MODULES = sorted((REPOSITORY / "imagen_jax").rglob("*.py"))
EXTENDING = REPOSITORY / "docs" / "extending.md"
MAX_LINE, MAX_PAGE = 120, 200
# Words that a reader cannot know the meaning of without having been there; see CONTRIBUTING.md, "Words".
OBSCURE = ("written out", "by heart", "so too", "as all the rest")


@pytest.fixture(scope="module")
def names() -> Names:
    return Names(REPOSITORY)


@pytest.mark.parametrize("path", [*PAGES, *CONFIGS], ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_names_in_pages_exist(names, path):
    assert wrong_names(names, path) == []


def test_names_in_docstrings_exist(names):
    assert [wrong for path in MODULES for wrong in wrong_names(names, path)] == []


def test_documented_arguments_exist():
    assert [wrong for path in MODULES for wrong in wrong_arguments(path)] == []


def test_a_wrong_argument_is_reported(tmp_path):
    module = tmp_path / "module.py"
    module.write_text('def f(a, b):\n    """Adds.\n\n    Args:\n      a, c: two\n        numbers.\n    """\n')
    assert wrong_arguments(module) == ["module.py:1: c"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("see docs/nowhere.md", "docs/nowhere.md"),
        ("see `train/lop.py`", "train/lop.py"),
        ("in `cellar/`", "cellar/"),
        ("`imagen_jax.stage.spec.Stages`", "imagen_jax.stage.spec.Stages"),
        ("`imagen_jax.stages.spec`", "imagen_jax.stages.spec"),
        ("`losses.LeastSquares`", "losses.LeastSquares"),
        ("a `StepTabel`", "StepTabel"),
        ("calls `make_step_tabel`", "make_step_tabel"),
        ("`Stage.prediktion`", "Stage.prediktion"),
        ("`P2Weighting(gama=1)`", "P2Weighting(gama=)"),
        ("with --gin_fille", "--gin_fille"),
        ("with --gin.BATCH_SIZES=3", "--gin.BATCH_SIZES"),
        ("with --gin.Stage.prediktion=v", "--gin.Stage.prediktion"),
        ("`make demos`", "demos"),
        ("`imagen_jax trian`", "trian"),
        ("```\nimagen_jax report --gin_file=x\n```", "report --gin_file"),
        ("```\npython -m benchmarks.nothing\n```", "benchmarks.nothing"),
        ("```\nrooms.py      a room\n```", "rooms.py"),
        ("[page](docs/missing.md)", "docs/missing.md"),
        ("[part](docs/maths.md#no-such-heading)", "docs/maths.md#no-such-heading"),
    ],
)
def test_a_wrong_name_is_reported(names, tmp_path, text, name):
    found = wrong_in(names, tmp_path, "A line before.\n" + text)
    assert found and all(one.startswith("page.md:") and int(one.split(":")[1]) >= 2 for one in found), found
    assert any(one.endswith(": " + name) for one in found), found


@pytest.mark.parametrize(
    "text",
    [
        "`imagen_jax.stage.spec.Stage.prediction`, `Stage.prediction`, `spec.Stage`, `P2Weighting(gamma=1, k=0.1)`",
        "`diffusion/losses.py`, docs/maths.md, `losses.py`, `train/`, configs/models/demo_*.gin, `config.gin`",
        "`imagen_jax train --gin_file=configs/experiments/demo_base.gin --gin.BATCH_SIZE=32 --dry_run`, `make test`",
        "--gin.Stage.prediction=v and --gin.T5Config.vocab_size=4000, [maths](docs/maths.md)",
        "```\npython -m launch.local --config launch/configs/demo.py\n```",
        "`imagen_jax script data/build_shapes.py --out corpora/shapes`",
    ],
)
def test_a_right_name_is_not(names, tmp_path, text):
    assert wrong_in(names, tmp_path, text) == []


def wrong_in(names: Names, folder: Path, text: str) -> list[str]:
    """The wrong names of a page that stands beside README.md."""
    page = folder / "page.md"
    page.write_text(text + "\n")
    (folder / "docs").symlink_to(REPOSITORY / "docs")
    root, names.root = names.root, folder
    try:
        return wrong_names(names, page)
    finally:
        names.root = root


def long_lines(path: Path) -> list[str]:
    """Lines of a page that are too long, as "file:line: length"."""
    lines = enumerate(path.read_text().splitlines(), 1)
    return [f"{path.name}:{number}: {len(line)}" for number, line in lines if len(line) > MAX_LINE]


@pytest.mark.parametrize("path", [*PAGES, REPOSITORY / "CHANGELOG.md"], ids=lambda path: path.name)
def test_pages_are_narrow_and_short(path):
    assert long_lines(path) == []
    assert len(path.read_text().splitlines()) <= MAX_PAGE


def test_a_long_line_is_reported(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("short\n" + "x" * 121 + "\n")
    assert long_lines(page) == ["page.md:2: 121"]


def questions(path: Path) -> list[str]:
    """Docstrings of a module that begin with a question word, as "file:line: first word"."""
    starts = [(line, (text.split() or [""])[0].rstrip(",'s")) for line, text in prose(path)]
    return [f"{path.name}:{line}: {word}" for line, word in starts if word in {"What", "Which", "How", "Whether"}]


def test_docstrings_begin_with_a_verb_or_a_noun():
    assert [found for path in MODULES for found in questions(path)] == []


def test_a_question_is_reported(tmp_path):
    module = tmp_path / "module.py"
    module.write_text('"""A module."""\n\n\ndef f():\n    """What is returned."""\n')
    assert questions(module) == ["module.py:5: What"]


def obscure(path: Path) -> list[str]:
    """Words of a file that hide their meaning, as "file: word"."""
    text = " ".join(path.read_text().split())
    return [f"{path.name}: {word}" for word in OBSCURE if word in text]


def test_words_say_what_they_mean():
    assert [found for path in (*PAGES, *CONFIGS, *MODULES) for found in obscure(path)] == []


def test_obscure_words_are_reported(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Ten pictures, learned by\nheart.\n")
    assert obscure(page) == ["page.md: by heart"]


def examples() -> list[tuple[str, str]]:
    """(heading, code) of every Python block of docs/extending.md and docs/features.md."""
    pages = (EXTENDING, EXTENDING.with_name("features.md"))
    sections = [one for page in pages for one in re.split(r"^## ", page.read_text(), flags=re.M)[1:]]
    return [
        (section.split("\n", 1)[0], code)
        for section in sections
        for code in re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    ]


@pytest.mark.parametrize(("heading", "code"), examples(), ids=[heading for heading, _ in examples()])
def test_examples_run(heading, code, tmp_path, monkeypatch):
    """Each block stands alone, and asserts something of what it made."""
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code))), heading
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # dataclasses look their module up
    exec(compile(code, f"{EXTENDING.name}: {heading}", "exec"), module.__dict__)


def test_extending_covers_each_part():
    assert {heading for heading, _ in examples()} >= {"A network", "A sampler", "An encoder", "A corpus", "A metric"}
