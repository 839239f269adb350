"""Samples as the suites' own scorers find them: stand-ins list, sort and crop as those programs do, as commands.

Each stand-in reads a folder by the rules of the program that its docstring names, and counts no file as ours that the
program would stumble over; the networks that judge are left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from imagen_jax.evals.suites.external import Scorer
from imagen_jax.evals.suites.suite import Suite
from tests.evals.suites.test_rows import GENEVAL, GENEVAL2
from tests.evals.suites.test_suite import SIDE, Painter, flat, write

# The common part: values of pictures, of which `flat` makes each from its image's number in the suite.
_HEAD = """
import json, os, re, sys
from PIL import Image

def value(picture):
    (one,) = {pixel for _, pixel in picture.convert("RGB").getcolors()}
    return one[0] // 10
"""

# GenEval, evaluation/evaluate_images.py: folders whose names are digits, one JSON object in metadata.jsonl, images
# named by digits, everything else passed over.
_GENEVAL = """
found = []
for folder in sorted(os.listdir(sys.argv[1])):
    here = os.path.join(sys.argv[1], folder)
    assert os.path.isdir(here) and folder.isdigit(), here
    metadata = json.load(open(os.path.join(here, "metadata.jsonl")))
    for name in sorted(os.listdir(os.path.join(here, "samples"))):
        assert re.match(r"\\d+\\.png", name), name
        found.append([metadata["prompt"], metadata["tag"], value(Image.open(os.path.join(here, "samples", name)))])
print(json.dumps(found))
"""

# GenEval 2, README: the file of prompts, and an object from each prompt to its image.
_GENEVAL2 = """
paths = json.load(open(sys.argv[1]))
rows = [json.loads(line) for line in open(sys.argv[2])]
print(json.dumps([[row["prompt"], value(Image.open(paths[row["prompt"]]))] for row in rows]))
"""

# T2I-CompBench: BLIPvqa_eval/BLIP_vqa.py and CLIPScore_eval/CLIP_similarity.py sort by what follows the last
# underscore, UniDet_eval's data set by what follows the first; each takes what stands before the first as the prompt.
_COMPBENCH = """
folder = sys.argv[1] + "/samples/"
names = sorted(os.listdir(folder), key=lambda name: int(name.split("_")[-1].split(".")[0]))
assert names == sorted(os.listdir(folder), key=lambda name: int(name.split("_")[1].split(".")[0]))
print(json.dumps([[name.split("_")[0], value(Image.open(folder + name))] for name in names]))
"""

# DPG-Bench, dpg_bench/compute_dpg_bench.py: every file of the folder is a picture, its name up to the first dot is the
# prompt's, and the images are four squares of the given resolution, row by row.
_DPG = """
side, found = int(sys.argv[2]), []
for name in sorted(os.listdir(sys.argv[1])):
    picture = Image.open(os.path.join(sys.argv[1], name))
    corners = [(0, 0), (side, 0), (0, side), (side, side)]
    found.append([name.split(".")[0], *(value(picture.crop((x, y, x + side, y + side))) for x, y in corners)])
print(json.dumps(found))
"""


def scored(folder: Path, kind: str, path: Path, code: str, *words: str, **fields: Any) -> Any:
    """Draws a suite, runs a stand-in on it twice, and gives what it found."""
    scorer = Scorer(command=(sys.executable, "-c", _HEAD + code, "{samples}", *words))
    suite = Suite(kind=kind, path=str(path), scorer=scorer, name="suite", **fields)
    for _ in range(2):
        # The second time all files of the first are there, the scorer's own too.
        suite.evaluate(Painter(flat), str(folder / "run"))
    return json.loads((folder / "run" / "suites" / "suite" / "suite_scores.json").read_text())["scores"]


def test_geneval_reads_its_folders(tmp_path: Path) -> None:
    lines = [json.dumps(GENEVAL), json.dumps({**GENEVAL, "tag": "position", "prompt": "b/é"})]
    found = scored(tmp_path, "geneval", write(tmp_path / "m.jsonl", "\n".join(lines)), _GENEVAL)
    assert found == [
        [prompt, tag, 4 * number + image]
        for number, (prompt, tag) in enumerate([(GENEVAL["prompt"], GENEVAL["tag"]), ("b/é", "position")])
        for image in range(4)
    ]


def test_geneval2_reads_its_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({**GENEVAL2, "prompt": prompt}) for prompt in ("two cubes", "a_b/c.d", "two cubes")]
    path = write(tmp_path / "g.jsonl", "\n".join(lines))
    monkeypatch.chdir(tmp_path)
    found = scored(Path(), "geneval2", Path(path.name), _GENEVAL2, "{suite}")
    assert found == [["two cubes", 0], ["a_b/c.d", 1], ["two cubes", 0]]


def test_compbench_reads_prompts_from_names(tmp_path: Path) -> None:
    path = write(tmp_path / "color_val.txt", "a red car.\nMr. 7's blue bird, at 12.30\n")
    found = scored(tmp_path, "compbench", path, _COMPBENCH, num_images=6)
    prompts = ["a red car."] * 6 + ["Mr. 7's blue bird, at 12.30"] * 6
    assert found == [[prompt, number] for number, prompt in enumerate(prompts)]


def test_dpg_crops_its_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("12", "COCOval2014_000000000333"):
        write(folder / f"{name}.txt", f"prompt {name}")
    found = scored(tmp_path, "dpg", folder, _DPG, str(SIDE))
    assert found == [["12", 0, 1, 2, 3], ["COCOval2014_000000000333", 4, 5, 6, 7]]
