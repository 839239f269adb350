"""The revision that artefacts carry is that of the code which wrote them."""

import subprocess
from pathlib import Path

from imagen_jax.versions import code_version, revision, versions


def _git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _checkout(folder: Path) -> str:
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "code.py").write_text("x = 1\n")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "first")
    return _git(folder, "rev-parse", "HEAD")


def test_a_checkout_has_its_commit_and_says_whether_it_was_changed(tmp_path):
    commit = _checkout(tmp_path / "clean")
    assert revision(tmp_path / "clean" / "package") == commit
    commit = _checkout(tmp_path / "changed")
    (tmp_path / "changed" / "package" / "code.py").write_text("x = 2\n")
    assert revision(tmp_path / "changed" / "package") == f"{commit}-dirty"


def test_a_package_installed_inside_another_checkout_has_not_its_commit(tmp_path):
    _checkout(tmp_path / "mine")
    installed = tmp_path / "mine" / "venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    assert revision(installed) is None
    (installed / "shipped").mkdir()
    (installed / "shipped" / "REVISION").write_text("0123abc\n")
    revision.cache_clear()
    assert revision(installed) == "0123abc"


def test_the_version_of_what_is_written_holds_the_revision():
    named = versions()
    assert code_version() == named["imagen_jax"] + (f"+g{named['git_revision']}" if named["git_revision"] else "")
