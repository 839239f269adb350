"""Limits of size: functions and experiments that a reader can hold at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = [path for folder in ("imagen_jax", "launch", "data") for path in sorted((REPOSITORY / folder).rglob("*.py"))]
MAX_LINES, MAX_PARAMETERS = 80, 8
# The loop is read as one contract.
LONGER = {"update_loop": 150, "train": 150}
MAX_BINDINGS = 25


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    """Every function and method of a file, also those inside others."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def too_large(path: Path) -> list[str]:
    """Names the functions of a file that are beyond a limit, with their size."""
    found = []
    for function in functions(path):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        parameters = len([name for name in names if name not in ("self", "cls")])
        if lines > LONGER.get(function.name, MAX_LINES):
            found.append(f"{path.name}: {function.name} has {lines} lines")
        if parameters > MAX_PARAMETERS:
            found.append(f"{path.name}: {function.name} has {parameters} parameters")
    return found


def bindings(path: Path) -> int:
    """Lines of a gin file that state something: no comment, import or include."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return len([line for line in lines if line and not line.startswith(("#", "from ", "import ", "include "))])


def test_functions_are_short():
    assert SOURCES
    assert [problem for path in SOURCES for problem in too_large(path)] == []


def test_experiments_state_little():
    counts = {path.name: bindings(path) for path in (REPOSITORY / "configs" / "experiments").glob("*.gin")}
    assert counts
    assert {name: count for name, count in counts.items() if count > MAX_BINDINGS} == {}


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def f(a, b, c, d, *, e, f, g, h, i):\n    pass\n", "f has 9 parameters"),
        ("def f(a):\n" + "    a = 1\n" * 80, "f has 81 lines"),
        ("class C:\n    def f(self, a, b, c, d, e, f, g, h):\n        pass\n", None),
    ],
)
def test_a_large_function_is_reported(tmp_path, source, problem):
    (tmp_path / "some.py").write_text(source)
    assert too_large(tmp_path / "some.py") == ([] if problem is None else [f"some.py: {problem}"])
