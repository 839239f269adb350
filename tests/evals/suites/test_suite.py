"""Suites drawn and scored: the layout that each scorer reads, resumed, refused, and the shapes suites to the end."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from imagen_jax import gin_config
from imagen_jax.errors import UserError
from imagen_jax.evals.drawn_images import RECORD
from imagen_jax.evals.evaluator import EvalConfig
from imagen_jax.evals.suites.external import Scorer
from imagen_jax.evals.suites.layouts import LAYOUTS
from imagen_jax.evals.suites.shapes_prompts import atom_rows, geneval_rows
from imagen_jax.evals.suites.suite import ShapesSuite, Suite
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.stage.sampling_config import SamplingConfig
from tests.evals.suites.painting import of_atoms, of_metadata, other_colour, picture
from tests.evals.suites.test_rows import GENEVAL, GENEVAL2

SIDE = 4


class Painter(Cascade):
    """Paints prompts by a rule and notes what it was asked for; dies after so many images."""

    def __init__(self, paint, last: int = 10**6, num_steps: int = 4) -> None:
        stage = SimpleNamespace(
            stage=SimpleNamespace(name="base", low_res_size=None),
            config_hash="abc",
            checkpoint="c",
            sampling=SamplingConfig(num_steps=num_steps),
        )
        object.__setattr__(self, "stages", (stage,))
        object.__setattr__(self, "paint", paint)
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "last", last)

    def stream(self, request, *, rows=None, batch_size=64, label="sample", fill=False):
        rows = list(range(len(request.prompts))) if rows is None else list(rows)
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            if len(self.asked) + len(chosen) > self.last:
                raise KeyboardInterrupt
            self.asked.extend(chosen)
            yield chosen, [np.stack([self.paint(request.prompts[i], i) for i in chosen])]


def flat(prompt: str, number: int) -> np.ndarray:
    """A picture of one value, which tells its number."""
    return np.full((SIDE, SIDE, 3), 10 * number, np.uint8)


def draw(folder: Path, kind: str, path: Path, cascade: Cascade | None = None, **fields) -> list[str]:
    """Draws a suite; the names of what is there then."""
    Suite(kind=kind, path=str(path), **fields).evaluate(cascade or Painter(flat), str(folder / "run"))
    root = folder / "run" / "suites"
    return sorted(one.relative_to(root).as_posix() for one in root.rglob("*") if one.is_file() and one.name != RECORD)


def value(folder: Path, name: str) -> list[int]:
    """Values at the middles of the parts of a picture, of SIDE by SIDE pixels each."""
    pixels = np.asarray(Image.open(folder / "run" / "suites" / name))[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE, 0]
    return [int(one) for one in pixels.ravel()]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_geneval_finds_a_folder_a_prompt(tmp_path):
    lines = [json.dumps(GENEVAL), json.dumps({**GENEVAL, "prompt": "b/../é"})]
    names = draw(tmp_path, "geneval", write(tmp_path / "m.jsonl", "\n".join(lines)))
    of_one = ["grid.png", "metadata.jsonl", *(f"samples/000{i}.png" for i in range(4))]
    assert names == [f"geneval/samples/0000{i}/{name}" for i in range(2) for name in of_one] + [
        "geneval/suite_scores.json"
    ]
    for number, line in enumerate(lines):
        folder = tmp_path / "run" / "suites" / "geneval" / "samples" / f"0000{number}"
        assert (folder / "metadata.jsonl").read_text() == line + "\n"
        assert json.load((folder / "metadata.jsonl").open()) == json.loads(line)
        assert value(tmp_path, f"geneval/samples/0000{number}/grid.png") == [40 * number + 10 * i for i in range(4)]


def test_geneval2_finds_absolute_paths_by_prompt(tmp_path, monkeypatch):
    lines = [json.dumps({**GENEVAL2, "prompt": prompt}) for prompt in ("two cubes", " b\u2028", "two cubes")]
    path = write(tmp_path / "g.jsonl", "\n".join(lines))
    monkeypatch.chdir(tmp_path)
    Suite(kind="geneval2", path=str(path)).evaluate(Painter(flat), "run")
    paths = json.loads((tmp_path / "run" / "suites" / "geneval2" / "image_paths.json").read_text())
    samples = tmp_path / "run" / "suites" / "geneval2" / "samples"
    assert paths == {"two cubes": str(samples / "00000.png"), " b\u2028": str(samples / "00001.png")}


def test_compbench_finds_prompts_in_names_that_are_numbered_on(tmp_path):
    path = write(tmp_path / "color_val.txt", "a red car.\na blue bird\n")
    names = draw(tmp_path, "compbench", path, num_images=2)
    assert len(names) == 5 and names[-1] == "compbench_color_val/suite_scores.json"
    samples = [name.rpartition("/")[2] for name in names if "/samples/" in name]
    # As its scorers take them apart.
    assert sorted((int(name.split("_")[-1].split(".")[0]), name.split("_")[0]) for name in samples) == [
        (0, "a red car."), (1, "a red car."), (2, "a blue bird"), (3, "a blue bird")]  # fmt: skip


@pytest.mark.parametrize("prompt", ["a/b", "../x", "a_b", "x" * 250, "é" * 130, "a\\b", "a\0b"])
def test_a_prompt_that_makes_no_name_is_refused_before_anything_is_drawn(tmp_path, prompt):
    painter = Painter(flat)
    with pytest.raises(UserError, match="list.txt line 2: T2I-CompBench's scorer reads the prompt"):
        draw(tmp_path, "compbench", write(tmp_path / "list.txt", f"a\n{prompt}\n"), painter)
    assert painter.asked == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "values"), [(4, [40, 50, 60, 70]), (1, [10])])
def test_dpg_finds_grids_without_gaps_named_as_its_files(tmp_path, number, values):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("12", "COCOval2014_000000000333"):
        write(folder / f"{name}.txt", f"prompt {name}")
    names = draw(tmp_path, "dpg", folder, num_images=number)
    grids = ["12.png", "COCOval2014_000000000333.png"]
    assert [name for name in names if "/samples/" in name] == [f"dpg/samples/{name}" for name in grids]
    assert value(tmp_path, f"dpg/samples/{grids[1]}") == values
    with pytest.raises(UserError, match=r"Suite.num_images \(5\) must be at most 4"):
        Suite(kind="dpg", path="x", num_images=5)


def test_raters_find_captions_beside_the_images(tmp_path):
    path = write(tmp_path / "d.csv", 'Prompts,Category\nA red car.,Colors\n"B ""é""",Text\n')
    names = draw(tmp_path, "drawbench", path, num_images=2, name="mine")
    images = [f"0000{i}_{j}.png" for i in range(2) for j in range(2)]
    assert names == [f"mine/samples/{name}" for name in (*images, "prompts.jsonl")] + ["mine/suite_scores.json"]
    lines = (tmp_path / "run" / "suites" / "mine" / "samples" / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"name": name, "prompt": prompt, "category": category}
        for name, (prompt, category) in zip(
            images, [("A red car.", "Colors")] * 2 + [('B "é"', "Text")] * 2, strict=True
        )
    ]


def test_a_suite_goes_on_where_it_stopped(tmp_path):
    path = write(tmp_path / "p.tsv", "Prompt\tCategory\n" + "".join(f"prompt {i}\tc\n" for i in range(7)))
    first, second = Painter(flat, last=4), Painter(flat)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, "parti", path, first, batch_size=2)
    names = draw(tmp_path, "parti", path, second, batch_size=2)
    assert first.asked == [0, 1, 2, 3] and second.asked == [4, 5, 6]
    assert len([name for name in names if name.endswith(".png")]) == 7
    assert [value(tmp_path, f"parti/samples/0000{i}_0.png") for i in range(7)] == [[10 * i] for i in range(7)]


def test_pictures_of_other_prompts_are_refused(tmp_path):
    path = write(tmp_path / "list.txt", "a\nb\n")
    draw(tmp_path, "compbench", path, num_images=1)
    write(path, "a\n")
    painter = Painter(flat)
    with pytest.raises(UserError, match="drawn otherwise: items in drawn.json differ"):
        draw(tmp_path, "compbench", path, painter, num_images=1)
    assert painter.asked == []


def test_pictures_of_another_cascade_are_refused(tmp_path):
    path = write(tmp_path / "p.tsv", "Prompt\tCategory\na\tb\n")
    draw(tmp_path, "parti", path)
    for cascade, fields in ((Painter(flat, num_steps=5), {}), (Painter(flat), {"seed": 1})):
        with pytest.raises(UserError, match="holds images that were drawn otherwise"):
            draw(tmp_path, "parti", path, cascade, **fields)
        assert cascade.asked == []


def command(code: str) -> Scorer:
    return Scorer(command=(sys.executable, "-c", code, "{samples}", "{suite}", "{output}"))


def test_a_scorers_json_is_taken_in_with_its_table(tmp_path, capsys):
    path = write(tmp_path / "m.jsonl", json.dumps(GENEVAL) + "\n" + json.dumps({**GENEVAL, "tag": "position"}))
    # Lines as GenEval's own evaluation writes them: the images of the first prompt are right.
    code = (
        "import glob, json, sys\n"
        "with open(sys.argv[3], 'w') as file:\n"
        "    for name in sorted(glob.glob(sys.argv[1] + '/*/samples/*.png')):\n"
        "        metadata = json.load(open(name.rsplit('/', 2)[0] + '/metadata.jsonl'))\n"
        "        correct = '/00000/' in name\n"
        "        print(json.dumps({'filename': name, 'tag': metadata['tag'], 'correct': correct,\n"
        "                          'metadata': json.dumps(metadata)}), file=file)\n"
    )
    draw(tmp_path, "geneval", path, scorer=command(code))
    result = json.loads((tmp_path / "run" / "suites" / "geneval" / "suite_scores.json").read_text())
    assert result["summary"]["tasks"] == {"colors": 1.0, "position": 0.0} and result["summary"]["overall"] == 0.5
    assert len(result["scores"]) == 8 and result["config_hash"] == "abc" and result["num_prompts"] == 2
    assert json.loads(capsys.readouterr().out.rpartition("}\n")[0] + "}") == result["summary"]


@pytest.mark.parametrize(
    ("scores", "summary"),
    [
        ([[1, 0.5, 0.5], [1, 1, 1]], {"am": pytest.approx(5 / 6), "gm": pytest.approx((0.25 ** (1 / 3) + 1) / 2)}),
        ([[1, 1], [1, 1, 1]], None),
        ([[1, 1, 2], [1, 1, 1]], None),
        ({"score": 3}, None),
    ],
)
def test_geneval2_lists_of_scores_are_summed_up(tmp_path, scores, summary):
    lines = [json.dumps(GENEVAL2), json.dumps({**GENEVAL2, "prompt": "b"})]
    path = write(tmp_path / "g.jsonl", "\n".join(lines))
    draw(
        tmp_path, "geneval2", path, scorer=command(f"import sys; open(sys.argv[3], 'w').write({json.dumps(scores)!r})")
    )
    result = json.loads((tmp_path / "run" / "suites" / "geneval2" / "suite_scores.json").read_text())
    found = result["summary"]
    assert result["scores"] == scores
    assert found is None if summary is None else {name: found[name] for name in summary} == summary


def test_a_scorer_that_fails_leaves_the_samples_and_runs_again(tmp_path):
    path = write(tmp_path / "p.tsv", "Prompt\tCategory\na\tb\n")
    with pytest.raises(UserError, match="exit code 4"):
        draw(tmp_path, "parti", path, scorer=command("raise SystemExit(4)"))
    assert not (tmp_path / "run" / "suites" / "parti" / "suite_scores.json").exists()
    painter = Painter(flat)
    draw(tmp_path, "parti", path, painter, scorer=command("import sys; open(sys.argv[3], 'w').write('{}')"))
    assert painter.asked == []


def test_a_scorer_on_a_bucket_is_refused_before_anything_is_drawn(tmp_path):
    painter = Painter(flat)
    suite = Suite(kind="parti", path=str(tmp_path / "p.tsv"), scorer=command("pass"))
    with pytest.raises(UserError, match="lies in a bucket"):
        suite.evaluate(painter, "gs://bucket/run")
    assert painter.asked == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kind": "geneva", "path": "x"}, "must be one of drawbench, parti, geneval, geneval2, compbench, dpg"),
        ({"kind": "parti", "path": ""}, "Suite.path"),
        ({"kind": "parti", "path": "x", "name": "a/b"}, "Suite.name"),
        ({"kind": "geneval2", "path": "x", "num_images": 2}, "must be at most 1"),
        ({"kind": "parti", "path": "x", "batch_size": 0}, "Suite.batch_size"),
    ],
)
def test_settings_are_checked(fields, problem):
    with pytest.raises(UserError) as error:
        Suite(**fields)
    assert problem in str(error.value)
    with pytest.raises(UserError, match="must be geneval or geneval2"):
        ShapesSuite(kind="parti")


def shapes(rows: Sequence, of, wrong: Sequence[str]):
    """Paints the prompts of a shapes suite by rule; those of some categories in other colours."""
    by_prompt = {row.prompt: row for row in rows}

    def paint(prompt: str, number: int) -> np.ndarray:
        row = by_prompt[prompt]
        objects, related = of(row.fields)
        if row.category in wrong:
            objects = [(other_colour(objects), shape) for _, shape in objects]
        return picture(objects, related, seed=number)

    return paint


def test_the_shapes_suite_in_genevals_form(tmp_path, capsys):
    rows = geneval_rows(1, 3)
    painter = Painter(shapes(rows, of_metadata, ("colors", "single_object")))
    ShapesSuite(num_prompts=3, num_images=2).evaluate(painter, str(tmp_path))
    folder = tmp_path / "suites" / "shapes_geneval"
    result = json.loads((folder / "suite_scores.json").read_text())
    # A colour is no part of the task of a single object.
    assert result["summary"]["tasks"]["colors"] == 0.0 and result["summary"]["tasks"]["single_object"] == 1.0
    assert result["summary"]["overall"] == pytest.approx(5 / 6) and result["summary"]["num_images"] == 36
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {one["filename"] for one in lines} == {
        f"samples/{i:05d}/samples/{j:04d}.png" for i in range(18) for j in (0, 1)
    }
    # The suite's own file is one that the reader takes.
    assert [row.fields for row in LAYOUTS["geneval"].read(str(folder / "evaluation_metadata.jsonl"))] == [
        row.fields for row in rows
    ]
    assert json.loads(capsys.readouterr().out) == result["summary"]


def test_the_shapes_suite_of_atoms(tmp_path):
    rows = atom_rows(1, 2)
    painter = Painter(shapes(rows, lambda fields: of_atoms(fields["atoms"]), ("2", "9")))
    ShapesSuite(kind="geneval2", num_prompts=2).evaluate(painter, str(tmp_path))
    folder = tmp_path / "suites" / "shapes_geneval2"
    summary = json.loads((folder / "suite_scores.json").read_text())["summary"]
    # All colours are wrong: one atom of two, and four of nine.
    assert {count: one["am"] for count, one in summary["by_atom_count"].items()} == {
        str(n): pytest.approx({2: 1 / 2, 9: 5 / 9}.get(n, 1.0)) for n in range(1, 11)
    }
    assert summary["gm"] == pytest.approx(0.8)
    assert summary["by_skill"]["object"] == summary["by_skill"]["count"] == summary["by_skill"]["position"] == 1.0
    assert [row.fields for row in LAYOUTS["geneval2"].read(str(folder / "geneval2_data.jsonl"))] == [
        row.fields for row in rows
    ]
    assert len(json.loads((folder / "score_lists.json").read_text())) == 20


def test_small_pictures_are_enlarged_for_the_judge(tmp_path):
    whole = shapes(geneval_rows(1, 1), of_metadata, ())
    painter = Painter(
        lambda prompt, number: whole(prompt, number).reshape(32, 2, 32, 2, 3).mean((1, 3)).astype(np.uint8)
    )
    ShapesSuite(num_prompts=1).evaluate(painter, str(tmp_path))
    result = json.loads((tmp_path / "suites" / "shapes_geneval" / "suite_scores.json").read_text())
    assert result["summary"]["overall"] == 1.0


def test_configs():
    flags = {"RUN_DIR": "'run'", "SUITE": "'geneval2'", "SUITE_PATH": "'s.jsonl'", "SCORER": "@external.Scorer()",
             "Scorer.command": "('python', '{samples}')"}  # fmt: skip
    config = gin_config.load(
        EvalConfig, ["configs/runs/suites.gin"], [f"{name} = {text}" for name, text in flags.items()]
    )
    assert config.evaluators == (
        Suite(kind="geneval2", path="s.jsonl", scorer=Scorer(command=("python", "{samples}"))),
    )
    config = gin_config.load(
        EvalConfig, ["configs/experiments/demo_suites.gin"], ["RUN_DIR = 'run'", "NUM_PROMPTS = 3"]
    )
    assert config.evaluators == (ShapesSuite(num_prompts=3), ShapesSuite(kind="geneval2", num_prompts=3))
