"""A filter keeps what Python says its expression holds for, and counts what it drops by the cause."""

import functools
import io
import json

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.caption_facts import is_boilerplate, letters, repetition
from imagen_jax.data.filters import filtered
from imagen_jax.data.metadata import captions_of, kept_facts, numbers_in
from imagen_jax.data.raw import RawExample, Rejection, Source
from imagen_jax.data.records import Corpus
from imagen_jax.errors import UserError
from imagen_jax.main import main

FACTS = {
    "similarity": 0.31, "aesthetic": 5.5, "punsafe": 0.02, "width": 640, "height": 480, "language": "en",
    "adult": False, "url": "https://example.org/a.jpg",
}  # fmt: skip


def _example(key: str = "k", caption: str = "a red cube", **meta) -> RawExample:
    return RawExample(key=key, image=np.zeros((6, 8, 3), np.uint8), caption=caption, meta=meta)


def _source(examples: list) -> Source:
    return Source(parts=[functools.partial(iter, examples)], num_examples=len(examples), settings={"kind": "test"})


def _one(expression: str, example: RawExample) -> RawExample | Rejection:
    (part,) = filtered(_source([example]), [expression]).parts
    (found,) = part()
    return found


@pytest.mark.parametrize(
    "expression",
    [
        "similarity >= 0.28 and aesthetic > 5 and punsafe < 0.1 and min(width, height) >= 256",
        "similarity >= 0.32",
        "0.3 < similarity < 0.32",
        "0.3 < similarity < 0.31",
        "width / height <= 4 / 3 and not width == height",
        "abs(width - height) * 2 + 1 == 321",
        "-similarity > -0.3 or max(width, height, 1000) == 1000",
        "language in ('en', 'de') and language not in ['fr']",
        "'example.org' in url",
        "not (language == 'en' and adult)",
        "adult",
        "adult == False and True",
    ],
)
def test_what_is_kept_is_what_python_says(expression):
    expected = eval(expression, {"min": min, "max": max, "abs": abs}, dict(FACTS))
    assert isinstance(_one(expression, _example(**FACTS)), RawExample) == expected


def test_conditions_are_counted_one_by_one_by_the_first_that_does_not_hold(tmp_path):
    examples = [
        _example("both", similarity=0.1, width=10),
        _example("narrow", similarity=0.9, width=10),
        _example("good", similarity=0.9, width=300),
        _example("unknown", width=300),
        _example("text", similarity="high", width=300),
        Rejection(source="row 7", reason="no image path"),
    ]
    expression = "similarity >= 0.28 and (width > 256 or width == 0)"
    source = filtered(_source(examples), [expression])
    report = build_corpus(source, tmp_path, BuildConfig(name="mine", image_size=4))
    expected = {
        "no similarity": 1,
        "similarity >= 0.28": 1,
        "unfit for similarity >= 0.28": 1,
        "width > 256 or width == 0": 1,
    }
    assert (report.num_examples, report.num_rejected, report.num_dropped) == ({"train": 1}, 5, expected)
    assert "rejected: 5, of these dropped 1 by no similarity, 1 by similarity >= 0.28, " in str(report)
    assert Corpus(tmp_path).manifest["num_dropped"] == expected
    refused = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [one["source"] for one in refused] == ["both", "narrow", "unknown", "text", "row 7"]
    assert refused[0] == {
        "source": "both", "reason": "not similarity >= 0.28", "dropped_by": "similarity >= 0.28",
    }  # fmt: skip
    assert "cannot be told: 'high' and 0.28 cannot be compared" in refused[3]["reason"]
    assert refused[4].keys() == {"source", "reason"}
    again = build_corpus(source, tmp_path, BuildConfig(name="mine", image_size=4))
    assert again.reused and again.num_dropped == expected
    with pytest.raises(UserError, match=r"other settings \(different: source\.filters\)"):
        build_corpus(_source(examples), tmp_path, BuildConfig(name="mine", image_size=4))


@pytest.mark.parametrize(
    ("expression", "dropped_by"),
    [
        ("aesthetic > 5", "no aesthetic"),
        ("aesthetic > 5 or width == 8", "no aesthetic"),
        ("width / 0 > 1", "unfit for width / 0 > 1"),
        ("width + 'a' == 3", "unfit for width + 'a' == 3"),
        ("width", "unfit for width"),
        ("not width", "unfit for not width"),
        ("min(caption, 3) == 3", "unfit for min(caption, 3) == 3"),
        ("3 in width", "unfit for 3 in width"),
    ],
)
def test_what_cannot_be_told_drops_and_is_counted(expression, dropped_by):
    found = _one(expression, _example())
    assert isinstance(found, Rejection) and found.dropped_by == dropped_by
    # Nothing is asked for that is not needed.
    assert isinstance(_one("width == 8 or aesthetic > 5", _example()), RawExample)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "cannot be read"),
        ("similarity >=", "cannot be read"),
        ("a = 3", "cannot be read"),
        ("(" * 5000, "cannot be read"),
        ("open('x')", r"holds what none may \(all of it\)"),
        ("min(open('x'), 3) > 2", r"holds what none may \(Call at 4\)"),
        ("url.strip() == ''", "holds what none may"),
        ("[x for x in (1, 2)]", "holds what none may"),
        ("(lambda: 1) == 1", "holds what none may"),
        ("9 ** 9 > 1", "holds what none may"),
        ("url[0] == 'a'", "holds what none may"),
        ("width is 3", "holds what none may"),
        ("min(*width, 3) > 1", "holds what none may"),
        ("max(width, key=3) > 1", "holds what none may"),
        ("b'x' == url", "holds what none may"),
        ("f'{width}' == url", "holds what none may"),
        ("min(width) > 1", r"min\(width\) has 1 values"),
        ("1" + "+1" * 150 + "> 0", "nested more than 100 deep"),
        ("1" + "+1" * 5000 + "> 0", "cannot be read"),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_filter_is_refused_and_never_run(expression, message):
    with pytest.raises(UserError, match=message):
        filtered(_source([]), [expression])


def test_size_is_that_of_the_facts_or_of_the_file(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "PNG")
    for image in (str(tmp_path / "a.png"), buffer.getvalue(), np.zeros((20, 30, 3), np.uint8)):
        example = RawExample(key="k", image=image, caption="c")
        assert _one("width == 30 and height == 20", example) is example
    kept = RawExample(key="k", image=buffer.getvalue(), caption="c", meta={"width": 500, "height": 400})
    assert _one("width == 500 and height == 400", kept) is kept
    # The build refuses it for what it is.
    broken = RawExample(key="k", image=b"no image", caption="c")
    assert _one("width == 30", broken) is broken


def test_captions_are_measured(tmp_path):
    assert repetition("dog dog dog") == repetition("buy now buy now") == repetition("a b c A B C") == 1.0
    assert repetition("a cat and a dog") == 2 / 5
    assert repetition("a red cube on the blue ring") == repetition("") == 0.0
    assert letters("ab 12") == 0.5 and letters("赤い") == 1.0 and letters(" ") == 0.0
    for text in ("IMG_1234", "a.jpg", "see https://x.org", "Stock Photo of a cat", "Click to enlarge", "© 2020 X"):
        assert is_boilerplate(text), text
    for text in ("a photo of a cat", "an image in a frame", "men who click their fingers", "a stock of wood"):
        assert not is_boilerplate(text), text
    rule = "caption_length <= 10 and caption_words > 1 and caption_letters > 0.5 and not caption_boilerplate"
    kept = [
        caption
        for caption in ("  a    red  cube ", "red", "a red cube indeed", "12 34 56", "© a cat")
        if isinstance(_one(rule, _example(caption=caption)), RawExample)
    ]
    assert kept == ["  a    red  cube "]


def test_facts_have_one_name_each():
    assert kept_facts({"WIDTH": 3, "LICENSE": "CC0", "x": None, "y": float("nan"), "z": [1], "flag": True}) == {
        "flag": True, "licence": "CC0", "width": 3
    }  # fmt: skip
    # Of img2dataset's sizes, those on the web.
    for names in (("width", "original_width"), ("original_width", "width")):
        sizes = {"width": 256, "original_width": 900}
        assert kept_facts({name: sizes[name] for name in names}) == {"width": 900}
    assert kept_facts({"url": "x" * 3000, "exif": "{}", "caption": "c", "bad": "\udcff"}) == {}
    assert numbers_in({"a": "0.5", "b": "-3", "c": "007", "d": "1_0", "e": "nan", "f": "2e3", "g": ""}) == {
        "a": 0.5, "b": -3, "c": "007", "d": "1_0", "e": "nan", "f": 2000.0, "g": ""
    }  # fmt: skip


@pytest.mark.parametrize("value", [3, None, [], [3], [{"caption": 3}], [{"caption": "a", "weight": -1}],
                                   [{"caption": "a", "weight": "x"}], [{"caption": "a", "weight": True}]])  # fmt: skip
def test_captions_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="caption"):
        captions_of(value)


def test_the_command_filters_and_workers_give_the_same_bytes(tmp_path, capsys):
    rows = []
    for i in range(20):
        Image.new("RGB", (8 + i, 8), (i, i, i)).save(tmp_path / f"{i}.png")
        captions = [{"caption": f"number {i}", "weight": 0.75}, f"picture {i} of twenty"]
        rows.append({"image": f"{i}.png", "caption": captions, "similarity": i / 20})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["build_corpus", f"--images={tmp_path}", "--image_size=8", "--filter=similarity > 0.5 and width < 26"]
    words += ["--min_caption=9", "--max_caption=20"]
    assert main([*words, f"--output={tmp_path / 'one'}"]) == 0
    assert main([*words, f"--output={tmp_path / 'two'}", "--num_workers=2"]) == 0
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    # 11 … 17 are similar and narrow enough; of these, all captions are.
    found = {record.key: json.loads(record.meta) for record in Corpus(tmp_path / "one").records("train")}
    assert found.keys() == {f"{i}.png{more}".encode() for i in range(11, 18) for more in ("", "#1")}
    assert found[b"11.png"] == {"similarity": 0.55, "weight": 0.75} and found[b"11.png#1"] == {"similarity": 0.55}
    assert "10 by caption_length >= 9, 12 by similarity > 0.5, 4 by width < 26" in capsys.readouterr().out
    assert main([*words[:-3], "--filter=simil >", f"--output={tmp_path / 'no'}"]) == 2
    assert "error: filter 'simil >' cannot be read" in capsys.readouterr().err and not (tmp_path / "no").exists()
