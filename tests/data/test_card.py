"""A data card counts what is in a corpus, by hand-counted examples, and is the same for equal corpora."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import card
from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.card import describe, script_of
from imagen_jax.data.raw import RawExample, Rejection
from imagen_jax.errors import UserError
from imagen_jax.files import check_content
from imagen_jax.main import main
from imagen_jax.report.card_data import CARD_FORM
from tests.report.report_page import Page

ATTACK = "</title><script>alert('x')</script>"


def _examples() -> list[RawExample | Rejection]:
    rows = [
        ("a red cube", {"width": 300, "height": 200, "licence": "CC0", "similarity": 0.25, "language": "en"}),
        ("красный куб", {"width": 4000, "height": 3000, "licence": "CC0", "similarity": 0.5}),
        (ATTACK, {"licence": "CC-BY", "similarity": True}),
        ("x" * 200, {}),
        ("IMG_1234", None),
    ]
    examples: list[RawExample | Rejection] = [
        RawExample(
            key=f"k{i}", image=np.full((8, 8, 3), 40 * i, np.uint8), caption=caption, meta=meta,
            split="val" if i == 4 else "train",
        )
        for i, (caption, meta) in enumerate(rows)
    ]  # fmt: skip
    return [*examples, Rejection(source="row 9", reason="not similarity > 0.2", dropped_by="similarity > 0.2")]


def _build(out: Path, source_of) -> Path:
    build_corpus(source_of(_examples()), out, BuildConfig(name="mine", image_size=8, examples_per_shard=2))
    return out


def test_what_is_counted(tmp_path, source_of):
    found = describe(_build(tmp_path, source_of))
    facts = json.loads(json.dumps(found.facts))
    assert facts["num_examples"] == {"train": 4, "val": 1} and facts["num_described"] == 5
    assert facts["num_rejected"] == 1 and facts["num_dropped"] == {"similarity > 0.2": 1}
    assert facts["values"]["licence"] == {"CC0": 2, "not stated": 2, "CC-BY": 1}
    assert facts["values"]["language"] == {"not stated": 4, "en": 1}
    assert facts["shorter_sides"] == {"128 to 255": 1, "2048 and more": 1, "not stated": 3}
    assert facts["numbers"] == {
        "similarity": {"count": 2, "least": 0.25, "median": 0.375, "mean": 0.375, "greatest": 0.5}
    }
    lengths = facts["caption_characters"]
    assert (lengths["least"], lengths["greatest"], lengths["median"]) == (8, 200, 11)
    assert lengths["histogram"] == {"below 20": 3, "20 to 39": 1, "160 to 319": 1}
    assert facts["caption_scripts"] == {"latin": 4, "cyrillic": 1}
    assert facts["num_boilerplate"] == 1
    # A model card shows parts of it.
    check_content("card.json", facts, CARD_FORM, "build the corpus again")
    assert facts["source"]["kind"] == "test" and facts["build"]["image_size"] == 8
    assert [(one.key, one.caption) for one in found.thumbnails][:2] == [("k0", "a red cube"), ("k1", "красный куб")]
    levels = [Image.open(io.BytesIO(one.jpeg)).getpixel((4, 4))[0] for one in found.thumbnails]
    assert levels == pytest.approx([0, 40, 80, 120, 160], abs=2)


def test_large_corpora_are_read_at_equal_distances_over_all_splits(numbered_corpus, monkeypatch):
    # 40 pictures in split train, then 2 in split val.
    monkeypatch.setattr(card, "_MOST_EXAMPLES", 21)
    monkeypatch.setattr(card, "_MOST_PICTURES", 6)
    monkeypatch.setattr(card, "_AT_ONCE", 4)
    found = describe(numbered_corpus(40))
    assert found.facts["num_described"] == 21
    assert [one.key for one in found.thumbnails] == [f"example-{i:03d}" for i in (0, 7, 14, 21, 28, 35)]
    monkeypatch.setattr(card, "_MOST_PICTURES", 42)
    assert [one.key for one in describe(numbered_corpus(40, name="again")).thumbnails] == [
        f"example-{i:03d}" for i in range(42)
    ]


def test_scripts_are_told_by_the_letters():
    assert [script_of(text) for text in ("a cube куб", "赤い立方体", "12 !", "مكعب", "क")] == [
        "latin", "cjk", "none", "arabic", "devanagari"
    ]  # fmt: skip


def test_the_page_loads_nothing_and_lets_nothing_through(tmp_path, source_of, capsys):
    corpus = _build(tmp_path / "corpus", source_of)
    assert main(["build_corpus", f"--audit={corpus}"]) == 0
    assert capsys.readouterr().out == f"{corpus / 'card.html'}\n"
    page = Page((corpus / "card.html").read_text())
    assert not {"script", "link", "iframe", "object", "embed"} & {name for name, _ in page.elements}
    images = page.all("img")
    assert len(images) == 5 and all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert page.text("title") == "Corpus: mine" and ATTACK in page.text("figcaption")
    assert "CC-BY" in page.text("table") and "similarity > 0.2" in page.text("table")
    assert json.loads((corpus / "card.json").read_text()) == json.loads(json.dumps(describe(corpus).facts))


def test_equal_builds_have_equal_cards_with_the_rights_stated_and_others_replace_them(tmp_path, bucket):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (8, 8), (50 * i,) * 3).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}")
    words = ["build_corpus", f"--images={folder}", "--image_size=8", "--licence=CC0", "--consent=asked for"]

    def build(out, *flags: str) -> None:
        assert main([*words, f"--output={out}", *flags]) == 0

    build(tmp_path / "one")
    build(tmp_path / "two", "--num_workers=2")
    build("gs://bucket-a/three")
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    there = {name.removeprefix("three/"): bucket.content(name) for name in bucket.names()}
    assert files[0] == files[1] == there and {"card.json", "card.html"} <= files[0].keys()
    page = Page((tmp_path / "one" / "card.html").read_text())
    assert "CC0" in page.text("dd") and "asked for" in page.text("dd")
    (folder / "4.txt").unlink()
    build(tmp_path / "one", "--overwrite")
    assert json.loads((tmp_path / "one" / "card.json").read_text())["num_examples"] == {"train": 4}


def test_what_an_audit_cannot_do_is_told(tmp_path, capsys):
    assert main(["build_corpus", f"--audit={tmp_path}"]) == 2
    assert "holds no whole corpus" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
    assert main(["build_corpus", f"--audit={tmp_path}", "--image_size=8"]) == 2
    assert "--audit builds nothing" in capsys.readouterr().err
    assert main(["build_corpus", "--images=x"]) == 2
    assert "build_corpus needs --output and --image_size; or --audit CORPUS_DIR" in capsys.readouterr().err
    with pytest.raises(UserError, match="does not exist"):
        describe(tmp_path / "absent")
