"""Model cards: the header parses, numbers are those of the run's files, and no text of a file becomes markup."""

import json
import math
import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from markdown_it import MarkdownIt

from imagen_jax.commands.parts.command import Command
from imagen_jax.errors import UserError
from imagen_jax.main import build_parser, find_modes, main
from imagen_jax.report.markdown import code, front_matter, line, plain, table
from imagen_jax.report.model_card import CardOptions, write_model_card
from tests.report.card_run import ATTACK, HASHES, build_corpus, build_run, scores


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("corpora") / "pictures")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> str:
    """The card of a run with every evaluation, by the command."""
    run = build_run(tmp_path_factory.mktemp("runs") / "demo", corpus)
    words = [f"--corpus={corpus}", "--license=apache-2.0", "--dataset", "someone/pictures"]
    assert main(["model_card", str(run), *words, f"--name={ATTACK}"]) == 0
    return (run / "README.md").read_text("utf-8")


def header(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))


class Rendered(HTMLParser):
    """The elements of a card, and the tables below each heading of it."""

    def __init__(self, card: str):
        super().__init__(convert_charrefs=True)
        self.names: set[str] = set()
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.words = self.title = ""
        self.feed(MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough").render(card))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag == "table":
            self.tables.setdefault(self.title.strip(), []).append([])
        if tag == "tr":
            self.tables[self.title.strip()][-1].append([])
        if tag in ("h1", "h2", "h3", "td", "th"):
            self.words = ""

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2", "h3"):
            self.title = self.words
        if tag in ("td", "th"):
            self.tables[self.title.strip()][-1][-1].append(self.words)


def body(card: str) -> Rendered:
    return Rendered(card.split("\n---\n", 1)[1])


def numbers_in(value: Any) -> Iterator[float]:
    """Every number of a JSON file, those in its keys and texts too."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from numbers_in(key)
            yield from numbers_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from numbers_in(one)
    elif isinstance(value, str):
        yield from (float(found) for found in re.findall(r"\d+(?:\.\d+)?", value))
    elif isinstance(value, int | float):
        yield float(value)


def test_header_has_the_fields_of_the_hub(card: str) -> None:
    fields = header(card)
    assert fields["license"] == "apache-2.0" and fields["language"] == ["en"]
    assert fields["library_name"] == "imagen_jax" and fields["pipeline_tag"] == "text-to-image"
    assert "text-to-image" in fields["tags"] and fields["datasets"] == ["someone/pictures"]
    (model,) = fields["model-index"]
    assert model["name"] == plain(ATTACK)
    values = {
        (one["dataset"]["type"], metric["type"]): metric["value"]
        for one in model["results"]
        for metric in one["metrics"]
    }
    assert values["imagen_jax-shapes", "single_both"] == 0.91301
    assert values["coco-val2014", "fid"] == 26.5  # The last of the two protocols.
    assert not any(kind == "geneval" for kind, _ in values)  # Other stages drew it.
    assert values["sweep-COCO", "fid"] == 19.25 and values["sweep-COCO", "clip_score"] == 32.0625
    assert all(one["task"] == {"type": "text-to-image"} and one["dataset"]["name"] for one in model["results"])


def test_the_hubs_own_reader_takes_the_header(card: str) -> None:
    data = huggingface_hub.ModelCard(card).data
    assert data.model_name == plain(ATTACK) and data.license == "apache-2.0"
    assert {one.dataset_type for one in data.eval_results} == {"imagen_jax-shapes", "coco-val2014", "sweep-COCO"}
    assert all(one.task_type == "text-to-image" for one in data.eval_results)


@pytest.mark.parametrize(
    ("title", "file"),
    [
        ("Alignment with the caption", "eval.json"),
        ("Scores of images", "image_scores.json"),
        ("Prompt suite geneval", "suites/geneval/suite_scores.json"),
        ("Sweep of sampling settings", "sweep/sweep.json"),
        ("Human ratings", "study/ratings.json"),
    ],
)
def test_numbers_of_a_table_are_those_of_its_file(card: str, title: str, file: str) -> None:
    (found,) = body(card).tables[title]
    known = list(numbers_in(scores()[file]))
    cells = [cell.replace(",", "").replace(plain(ATTACK), "") for row in found[1:] for cell in row]
    told = [float(one) for cell in cells for one in re.findall(r"\d+(?:\.\d+)?", cell)]
    assert len(told) >= 4 and {len(row) for row in found} == {len(found[0])}
    assert [one for one in told if not any(math.isclose(one, other, rel_tol=1e-3) for other in known)] == []


def test_protocols_stand_beside_the_numbers(card: str) -> None:
    fid = body(card).tables["Scores of images"][0]
    assert fid[1][:4] == ["imagen_30k", "27.12", "29,999", "40,504"]
    assert fid[1][4:7] == ["val2014, all images", "any of an image, seed 0",
                           "crop_then_resize, bicubic to 256, then tf1"]  # fmt: skip
    assert "weights of sha256 ab12" in card and "span 0.6235" in card
    assert "1,512 prompts worded" in card and "553 prompts, 4 images a prompt, first seed 3" in card
    assert card.count("They are not those described here") == 1
    assert "protocol.name imagen" in card and "on TPU v4, in base 77.5 s" in card
    ratings = body(card).tables["Human ratings"][0]
    assert ratings[1][2:5] == ["200", "1,000", "0.6125 (0.55 to 0.7)"] and ratings[1][-1] == "0.4375"


def test_stages_and_training_are_told(card: str) -> None:
    tables = body(card).tables
    stages, sampled = tables["Model"]
    assert stages[1] == ["base", "16x16", "the caption", "UNet", "123,456", "eps", "4,800", "32", "153,600"]
    assert stages[2][:3] == ["sr", "64x64", "the caption and 16x16 pixels"]
    assert sampled[1][:4] == ["base", "DDIMSampler", "12", "2.5"] and sampled[2][5] == "0"
    devices, seconds, versions = tables["How it was trained"]
    assert devices[1] == ["base", "data 8 (8 TPU v4)"]
    assert seconds[1:] == [["train", "3,000"], ["all", "4,000"]]
    assert ["git_revision", "–", "–"] in versions
    assert "T5 encoder, 3 layers, width 16 with random parameters" in card and "cut after 7 tokens" in card
    data = tables["Corpus pictures"]
    assert ["source, licence", plain(ATTACK)] in data[0] and ["examples in split train", "2"] in data[0]
    assert ["script", "latin", "2"] in data[1]


def test_texts_of_files_become_no_markup(card: str) -> None:
    rendered = body(card)
    assert rendered.names == {"h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "pre",
                              "code"}  # fmt: skip
    assert plain(ATTACK) in rendered.tables["Human ratings"][0][0]
    assert "\u202e" not in card
    assert "'````\n---'" in card


def test_a_run_without_evaluations(tmp_path: Path, corpus: Path) -> None:
    run = build_run(tmp_path / "bare", corpus, evaluated=False, pretrained=True)
    assert main(["model_card", str(run), "--license=My own terms", "--language", "de", "fr"]) == 0
    card = (run / "README.md").read_text("utf-8")
    fields = header(card)
    assert (fields["license"], fields["license_name"], fields["language"]) == ("other", "My own terms", ["de", "fr"])
    assert not {"model-index", "datasets"} & fields.keys()
    (absent,) = re.findall(r"^The run directory holds no results of: (.*)$", card, re.M)
    assert [word in absent for word in ("alignment", "FID", "suites", "sweeps", "raters")] == [True] * 5
    assert "No data card was found" in card
    assert "the pretrained T5 encoder, 3 layers, width 16 of t5-v1_1-xxl" in card and "somebody" not in card
    (command,) = re.findall("^imagen_jax sample.*$", card, re.M)
    arguments = build_parser().parse_args(shlex.split(command)[1:])
    assert arguments.checkpoint == "." and arguments.captions == ["a red cube"] and arguments.text_encoder == "PATH"


def test_scores_of_these_stages_stand_in_the_header(tmp_path: Path, corpus: Path) -> None:
    run = build_run(tmp_path / "demo", corpus)
    path = run / "suites/geneval/suite_scores.json"
    path.write_text(path.read_text().replace('"another"', json.dumps("-".join(HASHES))))
    fields = header(Path(write_model_card(str(run), CardOptions())).read_text("utf-8"))
    (suite,) = [one for one in fields["model-index"][0]["results"] if one["dataset"]["type"] == "geneval"]
    values = {metric["type"]: metric["value"] for metric in suite["metrics"]}
    assert (values["overall"], values["tasks / two_object"]) == (0.5, 1.0) and "num_images" not in values
    (run / "eval.json").write_text((run / "eval.json").read_text().replace(HASHES[0], "old"))
    card = Path(write_model_card(str(run), CardOptions(overwrite=True))).read_text("utf-8")
    assert "imagen_jax-shapes" not in card and "They are not those described here" in card


def test_a_card_that_is_there_is_kept(tmp_path: Path, corpus: Path) -> None:
    run = build_run(tmp_path / "demo", corpus, evaluated=False)
    (run / "README.md").write_text("mine")
    with pytest.raises(UserError, match="is there already; give --overwrite"):
        write_model_card(str(run), CardOptions())
    assert (run / "README.md").read_text() == "mine"
    write_model_card(str(run), CardOptions(output=str(tmp_path / "other.md")))
    write_model_card(str(run), CardOptions(overwrite=True))
    assert (run / "README.md").read_text() == (tmp_path / "other.md").read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("eval.json", '{"alignment": [1]}'),
        ("image_scores.json", '{"weights_sha256": {"inception": "a"}, "spread": {"fid": 0}, "scores": [{"fid": "x"}]}'),
        ("image_scores.json", json.dumps(scores()["image_scores.json"]).replace("27.123456", "NaN")),
        ("suites/geneval/suite_scores.json", "{"),
        ("suites/geneval/suite_scores.json", '{"suite": "geneval"}'),
        ("sweep/sweep.json", '{"points": []}'),
        ("study/ratings.json", '{"models": ["one"]}'),
        ("metrics.json", "[]"),
        ("commands.json", '[{"phase": 1}]'),
        ("base/checkpoints/checkpoint_4800/stage.json", '{"stage": {}}'),
        ("base/checkpoints/checkpoint_4800/position.json", "\0"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    tmp_path: Path, corpus: Path, file: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = build_run(tmp_path / "demo", corpus)
    (run / file).write_text(content)
    assert main(["model_card", str(run)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and file.rsplit("/", 1)[-1] in told
    assert not (run / "README.md").exists()


def test_what_is_no_run_or_another_corpus_is_refused(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match="no trained stage under"):
        write_model_card(str(tmp_path), CardOptions())
    run = build_run(tmp_path / "demo", corpus, evaluated=False)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match="it has no corpus.json"):
        write_model_card(str(run), CardOptions(corpora=(str(other),)))
    (other / "corpus.json").write_text((corpus / "corpus.json").read_text() + "\n")
    with pytest.raises(UserError, match="has the digest .*, the stages were trained on"):
        write_model_card(str(run), CardOptions(corpora=(str(other),)))
    # One beside the stages that they were not trained on says nothing of them.
    other.rename(run / "corpus")
    card = Path(write_model_card(str(run / "base"), CardOptions())).read_text("utf-8")
    assert "One stage of the Imagen design" in card and "No data card was found" in card


@pytest.mark.parametrize(
    "value", ["no", "1e3", "~", "a: b", "- x", "'", '"\\', "# c", "é\u2028\x85\x7f\ud800", "", "---"]
)
def test_yaml_gives_every_text_back(value: str) -> None:
    fields = {"one": value, "list": [value, {"in": [value]}], "numbers": [1e-07, 1e16, 0.1, -3, True]}
    found = yaml.safe_load(front_matter(fields).removeprefix("---\n").removesuffix("\n---"))
    assert found == {"one": plain(value), "list": [plain(value), {"in": [plain(value)]}], "numbers": fields["numbers"]}


def test_markdown_gives_every_text_back() -> None:
    markdown = f"{line('x ', ATTACK)}\n\n{table(['a', ATTACK], [[ATTACK, 1], [None, 'snake_case_word']])}"
    (found,) = Rendered(markdown).tables[""]
    assert found == [["a", plain(ATTACK)], [plain(ATTACK), "1"], ["", "snake_case_word"]]
    assert "snake_case_word" in markdown
    block = "one ``` two\n```\n`````"
    assert MarkdownIt().render(code(block)) == f"<pre><code>{block}\n</code></pre>\n"


def test_the_mode_stands_after_the_report() -> None:
    modes = find_modes()
    assert isinstance(modes["model_card"], Command)
    names = list(modes)
    assert names.index("eval") < names.index("model_card") < names.index("upgrade_run")
