"""What setup.py asks for is what the code imports."""

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# Requirements whose module has another name.
MODULES = {
    "PyYAML": "yaml",
    "absl_py": "absl",
    "c2pa_python": "c2pa",
    "gin_config": "gin",
    "orbax_checkpoint": "orbax",
    "pillow": "PIL",
    "protobuf": "google",
    "scikit_image": "skimage",
    "scikit_learn": "sklearn",
}
# Requirements that the code does not import, and why they are asked for all the same.
NOT_IMPORTED = {
    "gcsfs": "fsspec finds it by name for gs://",
    "importlib_resources": "tensorflow-datasets imports it when a data set is prepared, and does not ask for it",
    "tensorflow_text": "seqio imports it; its operators are built for one version of TensorFlow",
}


def requirements(source: str) -> dict[str, list[str]]:
    """Names of the requirements in a setup.py, by extra; "" are those of every installation."""
    keywords = {node.arg: node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.keyword)}
    lists = {"": ast.literal_eval(keywords["install_requires"]), **ast.literal_eval(keywords["extras_require"])}
    return {extra: [_name(one) for one in ones] for extra, ones in lists.items()}


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return re.sub(r"[-.]", "_", found.group())


def imported(paths: Iterable[Path]) -> set[str]:
    """First part of every absolute import in some files, the standard library's left out."""
    found: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


def python_files(*folders: str) -> list[Path]:
    """The Python files below some folders of the repository."""
    return [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def module(requirement: str) -> str:
    """What one imports of a requirement."""
    return MODULES.get(requirement, requirement)


def test_every_requirement_is_imported_or_has_its_reason():
    asked = requirements((REPOSITORY / "setup.py").read_text())[""]
    used = imported(python_files("imagen_jax", "launch", "data", "benchmarks"))
    assert {one for one in asked if module(one) not in used} == set(NOT_IMPORTED)


def test_every_import_is_asked_for():
    """Nothing hangs on what another requirement happens to bring."""
    asked = requirements((REPOSITORY / "setup.py").read_text())
    known = {module(one) for extra in ("", "photos", "serve", "filter", "c2pa", "beam") for one in asked[extra]}
    used = imported(python_files("imagen_jax", "launch", "data"))
    assert used - known - {"imagen_jax", "launch", "data"} == set()


def test_every_requirement_is_pinned():
    pinned = {_name(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line}
    asked = requirements((REPOSITORY / "setup.py").read_text())
    own_lock = {"beam"}
    missing = {one for extra, ones in asked.items() if extra not in own_lock for one in ones} - pinned
    assert missing == set()
    pinned_for_beam = {_name(line) for line in (REPOSITORY / "constraints-beam.txt").read_text().splitlines()}
    assert {*asked[""], *asked["dev"], *asked["beam"]} - pinned_for_beam == set()


def test_the_readers_see_what_stands_there(tmp_path):
    source = 'setup(install_requires=["a-b>=1,<2", "c.d[x]==1"], extras_require={"more": ["e"]})'
    assert requirements(source) == {"": ["a_b", "c_d"], "more": ["e"]}
    (tmp_path / "one.py").write_text("import os, a.b\nfrom . import own\ndef f():\n    from c.d import e\n")
    assert imported([tmp_path / "one.py"]) == {"a", "c"}
