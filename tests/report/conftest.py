"""Fixtures of the report's tests."""

from pathlib import Path

import pytest

from tests.report.report_page import Page, build_run, report


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return build_run(tmp_path / "demo")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of a whole run, for the tests that only look."""
    return report(build_run(tmp_path_factory.mktemp("whole") / "demo"))
