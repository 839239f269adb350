"""Suites by name: how each is read, where its own scorer looks for the samples, and how its scores are summed up.

Each layout is what the scorer's own repository reads:

- GenEval (djghosh13/geneval, evaluation/evaluate_images.py): a folder a prompt with metadata.jsonl, samples/NNNN.png
  and grid.png.
- GenEval 2 (facebookresearch/GenEval2, README): a JSON object from each prompt to the path of its image.
- T2I-CompBench (Karine-Huang/T2I-CompBench, BLIPvqa_eval/BLIP_vqa.py): samples/PROMPT_NNNNNN.png, numbered through the
  list; the prompt ends at the name's first underscore.
- DPG-Bench (TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py): a picture a prompt, of four images without gaps,
  named as the prompt's file.
- DrawBench and PartiPrompts have human raters: images, and prompts.jsonl beside them.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.evals.suites.rows import (
    SuiteRow,
    read_compbench,
    read_dpg,
    read_drawbench,
    read_geneval,
    read_geneval2,
    read_parti,
)
from imagen_jax.evals.suites.summaries import sum_up_geneval, sum_up_geneval2
from imagen_jax.files import absolute, is_file_name, write_json, write_text
from imagen_jax.sampling.images import read_image, sheet, write_png

SAMPLES = "samples"
PROMPTS_FILE = "prompts.jsonl"
PATHS_FILE = "image_paths.json"
_IMAGES = "images"
# Columns of a GenEval grid, and of DPG-Bench's.
_COLUMNS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A kind of suite.

    Args:
      read: its file → its prompts.
      num_images: images a prompt that its publisher asks for.
      most_images: more than these its scorer cannot take.
      place: the prompt, its number in the suite, the number of the image and images a prompt → the image's path.
      grid: the prompt, its number → the path of a picture of all its images without gaps, in rows of two; "": none.
      describe: folder, prompts and the images' paths by prompt → writes what else the scorer reads.
      samples: what the scorer is told, from the suite's folder on.
      sum_up: prompts and the scorer's JSON → a summary, or None where the JSON is not of the form it knows.
    """

    read: Callable[[str], list[SuiteRow]]
    num_images: int
    most_images: int = 100
    place: Callable[[SuiteRow, int, int, int], str]
    grid: Callable[[SuiteRow, int], str] = lambda row, number: ""
    describe: Callable[[str, Sequence[SuiteRow], Sequence[Sequence[str]]], None] = lambda folder, rows, places: None
    samples: str = SAMPLES
    sum_up: Callable[[Sequence[SuiteRow], Any], dict[str, Any] | None] = lambda rows, scores: None

    def places(self, rows: Sequence[SuiteRow], num_images: int) -> list[list[str]]:
        """Paths of each prompt's images, from the suite's folder on."""
        return [[self.place(row, number, i, num_images) for i in range(num_images)] for number, row in enumerate(rows)]

    def finish(self, folder: str, rows: Sequence[SuiteRow], places: Sequence[Sequence[str]]) -> None:
        """Writes what the scorer reads besides the images; they are there."""
        for number, (row, of_row) in enumerate(zip(rows, places, strict=True)):
            if grid := self.grid(row, number):
                images = [np.asarray(read_image(os.path.join(folder, place))) for place in of_row]
                whole = sheet(images, min(_COLUMNS, len(images)), gap=0)
                write_png(os.path.join(folder, grid), whole, {"prompt": row.prompt})
        self.describe(folder, rows, places)


def _place_for_raters(row: SuiteRow, number: int, image: int, num_images: int) -> str:
    return f"{SAMPLES}/{number:05d}_{image}.png"


def _describe_for_raters(folder: str, rows: Sequence[SuiteRow], places: Sequence[Sequence[str]]) -> None:
    lines = [
        json.dumps({"name": os.path.basename(place), "prompt": row.prompt, "category": row.category})
        for row, of_row in zip(rows, places, strict=True)
        for place in of_row
    ]
    write_text(os.path.join(folder, SAMPLES, PROMPTS_FILE), "\n".join(lines) + "\n")


def _place_geneval(row: SuiteRow, number: int, image: int, num_images: int) -> str:
    return f"{SAMPLES}/{number:05d}/samples/{image:04d}.png"


def _grid_geneval(row: SuiteRow, number: int) -> str:
    return f"{SAMPLES}/{number:05d}/grid.png"


def _describe_geneval(folder: str, rows: Sequence[SuiteRow], places: Sequence[Sequence[str]]) -> None:
    for row, of_row in zip(rows, places, strict=True):
        own = os.path.join(folder, os.path.dirname(os.path.dirname(of_row[0])))
        write_text(os.path.join(own, "metadata.jsonl"), row.line + "\n")


def _place_geneval2(row: SuiteRow, number: int, image: int, num_images: int) -> str:
    return f"{SAMPLES}/{number:05d}.png"


def _describe_geneval2(folder: str, rows: Sequence[SuiteRow], places: Sequence[Sequence[str]]) -> None:
    # A prompt that stands there twice has one image in this file: the first, as both are drawn from the same words.
    paths: dict[str, str] = {}
    for row, of_row in zip(rows, places, strict=True):
        paths.setdefault(row.prompt, absolute(os.path.join(folder, of_row[0])))
    write_json(os.path.join(folder, PATHS_FILE), paths)


def _place_compbench(row: SuiteRow, number: int, image: int, num_images: int) -> str:
    name = f"{row.prompt}_{number * num_images + image:06d}.png"
    if "_" in row.prompt or not is_file_name(name):
        problem = "holds an underscore" if "_" in row.prompt else "is too long for a file name, or holds / or \\"
        raise UserError(
            f"{row.where}: T2I-CompBench's scorer reads the prompt from the file's name, up to the first underscore, "
            f"and this one {problem}; mend or remove that line"
        )
    return f"{SAMPLES}/{name}"


def _place_dpg(row: SuiteRow, number: int, image: int, num_images: int) -> str:
    return f"{_IMAGES}/{row.name}_{image}.png"


def _grid_dpg(row: SuiteRow, number: int) -> str:
    return f"{SAMPLES}/{row.name}.png"


LAYOUTS: Mapping[str, Layout] = {
    # The paper shows raters 8 images a side.
    "drawbench": Layout(read=read_drawbench, num_images=8, place=_place_for_raters, describe=_describe_for_raters),
    "parti": Layout(read=read_parti, num_images=1, place=_place_for_raters, describe=_describe_for_raters),
    "geneval": Layout(
        read=read_geneval,
        num_images=4,
        place=_place_geneval,
        grid=_grid_geneval,
        describe=_describe_geneval,
        sum_up=sum_up_geneval,
    ),
    "geneval2": Layout(
        read=read_geneval2,
        num_images=1,
        most_images=1,
        place=_place_geneval2,
        describe=_describe_geneval2,
        samples=PATHS_FILE,
        sum_up=sum_up_geneval2,
    ),
    # Its scorers take the folder that holds samples/.
    "compbench": Layout(read=read_compbench, num_images=10, place=_place_compbench, samples=""),
    "dpg": Layout(read=read_dpg, num_images=4, most_images=4, place=_place_dpg, grid=_grid_dpg),
}
