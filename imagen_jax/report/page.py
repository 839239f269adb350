"""One self-contained HTML page for a cascade run: samples, scores, training, cost, commands.

The page loads nothing: pictures are data: URIs, charts inline SVG, the style sheet inline, no script.
"""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from imagen_jax.files import as_path, write_text
from imagen_jax.report.data import CascadeRun, read_run
from imagen_jax.report.document import document
from imagen_jax.report.markup import Child, Html, join, table, tag
from imagen_jax.report.samplers import Study, read_samplers, read_thresholds
from imagen_jax.report.sections import Section, facts, missing_notes, result_line, sections

_PACKAGES = (
    "imagen_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "seqio",
    "tensorflow",
)


def write_report(run_dir: str) -> str:
    """Writes RUN_DIR/report.html from whatever the cascade run directory holds.

    Read are samples.png, samples/*.png with their text chunks, samples/*_base.png, eval.json, metrics.json,
    samplers.json, thresholds.json with eval/thresholds.png, thresholds_STAGE.json with its own, photos.json (its paths
    are relative to run_dir), commands.json and, of each stage, metrics.jsonl, config.gin and samples/step_N.png. A
    section whose input is missing is named in a note at the end.

    Args:
        run_dir: a cascade directory, such as runs/demo, that holds the stages' run directories.

    Returns:
        The path of the page.

    Raises:
        UserError: run_dir is missing, holds nothing to report on, or one of its files is malformed.
    """
    folder = as_path(run_dir)
    content = page(read_run(folder), read_samplers(folder), read_thresholds(folder))
    path = folder / "report.html"
    # A JSON file may hold halves of characters, and UTF-8 cannot.
    write_text(path, content.encode(errors="replace").decode())
    return os.fspath(path)


def page(run: CascadeRun, steps: Study | None = None, rules: Sequence[Study] = ()) -> str:
    """The whole HTML document of a run, with its sampler and thresholding sweeps."""
    every = sections(run, steps, rules)
    every.append(Section(anchor="versions", title="Versions", body=_versions(run), missing=""))
    shown = [section for section in every if section.body is not None]
    absent = [section for section in every if section.body is None]
    if absent:
        note = join(tag("p", "The run directory holds no input for these sections."), missing_notes(absent))
        shown.append(Section(anchor="left-out", title="Left out", body=note, missing=""))
    links = (tag("li", tag("a", section.title, href=f"#{section.anchor}")) for section in shown)
    title = f"Imagen cascade: {run.name}"
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return document(
        title,
        tag(
            "header",
            tag("p", "imagen_jax report", class_="eyebrow"),
            tag("h1", title),
            tag("p", result_line(run), class_="lede"),
            facts(run),
        ),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *(_section(section) for section in shown)),
        tag("footer", f"Written {now} by imagen_jax. This page loads nothing from elsewhere."),
    )


def _section(section: Section) -> Html:
    heading = tag("h2", section.title, id=f"{section.anchor}-title")
    return tag("section", heading, section.body, id=section.anchor, aria_labelledby=f"{section.anchor}-title")


def _versions(run: CascadeRun) -> Html:
    """Versions each stage was trained with (its versions.json) beside those installed now."""
    here: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            here[package] = version(package)
        except PackageNotFoundError:
            here[package] = None
    stages = [(stage.name, stage.versions) for stage in run.stages if stage.versions is not None]
    columns = [versions for _, versions in stages] + [here]
    names = dict.fromkeys(name for column in columns for name in column)
    rows: list[list[Child]] = [[name, *(str(column.get(name) or "–") for column in columns)] for name in names]
    header: list[Child] = ["Package", *(f"Stage {name}" for name, _ in stages), "This report"]
    return table("Versions of packages", header, rows)
