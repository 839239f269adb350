"""Evaluators that draw a prompt suite → RUN_DIR/suites/NAME: samples as the suite's own scorer reads them, and scores.

`Suite` reads the user's file of a suite and may run its scorer; `ShapesSuite` makes prompts of the shapes corpus and
lets the exact judge score them. Both write suite_scores.json.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagen_jax.checks import check_count, check_path
from imagen_jax.errors import UserError
from imagen_jax.evals.drawn_images import DrawnItem, draw_missing
from imagen_jax.evals.drawn_sizes import enlarged
from imagen_jax.evals.shapes_judge import Reading, read
from imagen_jax.evals.suites.external import Scorer, check_places, run_scorer
from imagen_jax.evals.suites.layouts import LAYOUTS, Layout
from imagen_jax.evals.suites.rows import SuiteRow
from imagen_jax.evals.suites.shapes_prompts import atom_rows, geneval_rows
from imagen_jax.evals.suites.shapes_scores import atom_scores, geneval_result
from imagen_jax.evals.suites.summaries import geneval_summary, soft_tifa_summary
from imagen_jax.files import is_file_name, write_json, write_text
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import read_image
from imagen_jax.versions import code_version

SCORES_FILE = "suite_scores.json"
RESULTS_FILE = "results.jsonl"
# Names as GenEval and GenEval 2 have them.
METADATA_FILE, ATOMS_FILE, SCORE_LISTS_FILE = "evaluation_metadata.jsonl", "geneval2_data.jsonl", "score_lists.json"
# Side of a square that the judge of shapes reads best.
_JUDGED_SIDE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """Draws the prompts of a suite's file and, if asked, runs its scorer on them.

    Args:
      kind: one of `layouts.LAYOUTS`.
      path: the suite's file, or DPG-Bench's folder.
      name: folder in RUN_DIR/suites; None: `kind`, with T2I-CompBench's list after it.
      num_images: images a prompt; None: as many as its publisher asks for.
      seed: of the first image's noise; that of the others is counted on.
      batch_size: images drawn at a time.
      scorer: run when all is drawn; None: none.
    """

    kind: str
    path: str
    name: str | None = None
    num_images: int | None = None
    seed: int = 0
    batch_size: int = 64
    scorer: Scorer | None = None

    def __post_init__(self) -> None:
        if self.kind not in LAYOUTS:
            raise UserError(f"Suite.kind ({self.kind!r}) must be one of {', '.join(LAYOUTS)}")
        check_path("Suite.path", self.path)
        layout = LAYOUTS[self.kind]
        if self.num_images is not None:
            hint = f"that is what the scorer of {self.kind} reads"
            check_count("Suite.num_images", self.num_images, hint=hint, most=layout.most_images)
        check_count("Suite.batch_size", self.batch_size)
        check_count("Suite.seed", self.seed, least=0, most=2**32 - 1)
        if self.name is not None and not is_file_name(self.name):
            raise UserError(f"Suite.name ({self.name!r}) must be the name of a folder in RUN_DIR/suites")

    @property
    def folder(self) -> str:
        """Its folder, from RUN_DIR on."""
        stem = os.path.splitext(os.path.basename(self.path.rstrip("/")))[0]
        return os.path.join("suites", self.name or (f"compbench_{stem}" if self.kind == "compbench" else self.kind))

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        """Writes the samples and suite_scores.json."""
        layout, folder = LAYOUTS[self.kind], os.path.join(run_dir, self.folder)
        if self.scorer is not None:
            check_places(self.scorer, folder, self.path)
        rows = layout.read(self.path)
        num_images = self.num_images or layout.num_images
        drawn = {"suite": self.kind, "seed": self.seed, "num_images_per_prompt": num_images}
        _draw_suite(cascade, folder, layout, rows, drawn, self.batch_size)
        result = {**drawn, "num_prompts": len(rows), "config_hash": cascade.config_hash, "version": code_version()}
        if self.scorer is not None:
            scores = run_scorer(self.scorer, folder, os.path.join(folder, layout.samples), self.path)
            summary = layout.sum_up(rows, scores)
            result |= {"command": list(self.scorer.command), "summary": summary, "scores": scores}
            if summary is not None:
                print(json.dumps(summary, indent=1))
        write_json(os.path.join(folder, SCORES_FILE), result)
        print(f"{len(rows)} prompts, {num_images * len(rows)} images in {folder}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesSuite:
    """Draws prompts of the shapes corpus in the form of a suite; the exact judge scores them.

    Args:
      kind: "geneval": six tasks; "geneval2": prompts of 1 to 10 atoms.
      num_prompts: of each task, or of each number of atoms; fewer where there are not so many different ones.
      num_images: images a prompt; "geneval2" has 1.
      seed: of the prompts, and of the noise as in `Suite`.
      batch_size: images drawn at a time.
    """

    kind: str = "geneval"
    num_prompts: int = 100
    num_images: int = 1
    seed: int = 1
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.kind not in ("geneval", "geneval2"):
            raise UserError(f"ShapesSuite.kind ({self.kind!r}) must be geneval or geneval2")
        check_count("ShapesSuite.num_prompts", self.num_prompts, most=1000)
        check_count("ShapesSuite.num_images", self.num_images, most=LAYOUTS[self.kind].most_images)
        check_count("ShapesSuite.batch_size", self.batch_size)
        check_count("ShapesSuite.seed", self.seed, least=0, most=2**32 - 1)

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        """Writes the suite's file, the samples, a line or list of scores an image or prompt, and suite_scores.json."""
        folder = os.path.join(run_dir, "suites", f"shapes_{self.kind}")
        rows = (geneval_rows if self.kind == "geneval" else atom_rows)(self.seed, self.num_prompts)
        name = METADATA_FILE if self.kind == "geneval" else ATOMS_FILE
        drawn = {"suite": f"shapes_{self.kind}", "seed": self.seed, "num_images_per_prompt": self.num_images}
        places = _draw_suite(cascade, folder, LAYOUTS[self.kind], rows, drawn, self.batch_size)
        write_text(os.path.join(folder, name), "".join(f"{row.line}\n" for row in rows))
        score = self._score_images if self.kind == "geneval" else self._score_atoms
        summary = score(folder, rows, places)
        result = {
            **drawn,
            "num_prompts": len(rows),
            "config_hash": cascade.config_hash,
            "version": code_version(),
            "summary": summary,
        }
        write_json(os.path.join(folder, SCORES_FILE), result)
        print(json.dumps(summary, indent=1))

    def _score_images(self, folder: str, rows: Sequence[SuiteRow], places: Sequence[Sequence[str]]) -> dict[str, Any]:
        results = [
            geneval_result(place, _reading(folder, place), row.fields)
            for row, of_row in zip(rows, places, strict=True)
            for place in of_row
        ]
        write_text(os.path.join(folder, RESULTS_FILE), "".join(f"{json.dumps(one)}\n" for one in results))
        return geneval_summary(results)

    def _score_atoms(self, folder: str, rows: Sequence[SuiteRow], places: Sequence[Sequence[str]]) -> dict[str, Any]:
        scores = [
            atom_scores(_reading(folder, of_row[0]), row.fields["atoms"])
            for row, of_row in zip(rows, places, strict=True)
        ]
        write_json(os.path.join(folder, SCORE_LISTS_FILE), scores)
        counts, skills = ([row.fields[name] for row in rows] for name in ("atom_count", "skills"))
        return soft_tifa_summary(scores, counts, skills)


def _draw_suite(
    cascade: Cascade, folder: str, layout: Layout, rows: Sequence[SuiteRow], drawn: dict[str, Any], batch_size: int
) -> list[list[str]]:
    """Draws the images that are not there yet, and writes what the scorer reads besides.

    Returns:
      Paths of each prompt's images, from the folder on.

    Raises:
      UserError: a name cannot be a file's, or the folder holds images of other prompts, settings or checkpoints, which
        the scorer would count; before anything is drawn.
    """
    places = layout.places(rows, drawn["num_images_per_prompt"])
    named = [(row.prompt, place) for row, of_row in zip(rows, places, strict=True) for place in of_row]
    items = [
        DrawnItem(prompt=prompt, seed=(drawn["seed"] + number) % 2**32, name=place)
        for number, (prompt, place) in enumerate(named)
    ]
    for _ in draw_missing(cascade, items, folder, batch_size=batch_size, label=f"draw {drawn['suite']}"):
        pass
    layout.finish(folder, rows, places)
    return places


def _reading(folder: str, place: str) -> Reading:
    """Reads a picture, enlarged where it is smaller than the judge can read."""
    image = np.asarray(read_image(os.path.join(folder, place)))
    return read(enlarged(image[None], max(1, _JUDGED_SIDE // min(image.shape[:2])))[0])
