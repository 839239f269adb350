"""CLIP's and BERT's vocabularies: transformers' own ids, from either kind of file."""

import json
import shutil
from pathlib import Path

import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.text.weights.pretrained import Pretrained

GOLDEN = Path(__file__).parents[1] / "golden"
CLIP, BERT = GOLDEN / "clip_hf", GOLDEN / "bert_hf"
FILES = {CLIP: ("vocab.json", "merges.txt"), BERT: ("vocab.txt",)}


def only(folder: Path, to: Path, *names: str) -> Path:
    """A folder that holds these files of another alone."""
    to.mkdir()
    for name in names:
        shutil.copy(folder / name, to)
    return to


def framed(path: Path, captions: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer(str(path))
    return [[*tokenizer.prefix, *ids, *tokenizer.suffix] for ids in tokenizer.encode(captions)]


@pytest.mark.parametrize("folder", [CLIP, BERT], ids=["CLIP", "BERT"])
def test_ids_are_those_of_transformers(tmp_path: Path, folder: Path) -> None:
    golden = json.loads((folder / "captions.json").read_text())
    captions = [one["caption"] for one in golden]
    one_file = only(folder, tmp_path / "json", "tokenizer.json")
    for path in (folder, one_file, only(folder, tmp_path / "parts", *FILES[folder])):
        for one, ids in zip(golden, framed(path, captions), strict=True):
            assert ids == one["ids"], (path.name, one["caption"])
    digests = [Tokenizer(str(path)).sha256 for path in (folder, one_file, tmp_path / "parts")]
    assert digests[0] == digests[1] != digests[2]


def test_frames_are_the_special_tokens() -> None:
    clip, bert = Tokenizer(str(CLIP)), Tokenizer(str(BERT))
    assert (clip.prefix, clip.suffix, clip.pad_id, clip.vocab_size) == ((552,), (553,), 553, 554)
    assert (bert.prefix, bert.suffix, bert.pad_id, bert.vocab_size) == ((3,), (4,), 0, 141)
    t5 = Tokenizer("bytes")
    assert (t5.prefix, t5.suffix, t5.pad_id) == ((), (1,), 0)


def test_a_cased_vocabulary_keeps_case_and_has_a_digest_of_its_own(tmp_path: Path) -> None:
    golden = json.loads((BERT / "captions.json").read_text())
    uncased = only(BERT, tmp_path / "uncased", "vocab.txt")
    cased = only(BERT, tmp_path / "cased", "vocab.txt")
    (cased / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert framed(cased, [one["caption"] for one in golden]) == [one["cased_ids"] for one in golden]
    assert Tokenizer(str(cased)).sha256 != Tokenizer(str(uncased)).sha256


@pytest.mark.parametrize("folder", [CLIP, BERT], ids=["CLIP", "BERT"])
def test_long_captions_are_cut_inside_the_frame(folder: Path) -> None:
    config = TextConfig(encoder=Pretrained(path=str(folder)), vocabulary_path=str(folder), max_length=8)
    encoder = TextEncoder(config)
    first, last = Tokenizer(str(folder)).prefix[0], Tokenizer(str(folder)).suffix[0]
    exact, long = " ".join(["a"] * 6), " ".join(["a"] * 7)
    assert encoder.count_tokens([exact, long, ""]) == [8, 9, 2]
    ids = encoder.tokenize([exact, long, ""])
    assert ids[0] == ids[1] and ids[2] == [first, last]
    assert ids[0][0] == first and ids[0][-1] == last and len(ids[0]) == 8
    assert encoder.num_truncated == 1


def test_settings_of_a_tokenizer_file_to_cut_or_pad_are_passed_over(tmp_path: Path) -> None:
    folder = only(BERT, tmp_path / "bert", "tokenizer.json")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert framed(folder, ["a red cube " * 5]) == framed(BERT, ["a red cube " * 5])


def test_damaged_and_other_vocabularies_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no vocabulary file at .*or to the folder of a T5, CLIP or BERT vocabulary"):
        Tokenizer(str(tmp_path / "empty"))
    damaged = only(CLIP, tmp_path / "damaged", "vocab.json", "merges.txt")
    (damaged / "vocab.json").write_text("{")
    with pytest.raises(UserError, match="vocab.json, .*merges.txt is damaged .*download it again"):
        Tokenizer(str(damaged))
    settings = only(BERT, tmp_path / "settings", "vocab.txt")
    (settings / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json is damaged .*download it again"):
        Tokenizer(str(settings))
    gpt = only(CLIP, tmp_path / "gpt", "vocab.json", "merges.txt")
    tokens = json.loads((gpt / "vocab.json").read_text())
    del tokens["<|startoftext|>"]
    (gpt / "vocab.json").write_text(json.dumps(tokens))
    with pytest.raises(UserError, match=r"lacks <\|startoftext\|>; give the one that came with the encoder"):
        Tokenizer(str(gpt))
    bare = only(CLIP, tmp_path / "bare", "tokenizer.json")
    content = json.loads((bare / "tokenizer.json").read_text()) | {"post_processor": None}
    (bare / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="ends captions with no special token"):
        Tokenizer(str(bare))
    frame = only(BERT, tmp_path / "frame", "tokenizer.json")
    content = json.loads((frame / "tokenizer.json").read_text())
    (frame / "tokenizer.json").write_text(json.dumps(content).replace('"ids": [4]', '"ids": [255]'))
    with pytest.raises(
        UserError, match="tokenizer.json is damaged .it puts the id 255 around captions and has 141 ids"
    ):
        Tokenizer(str(frame))
    del content["post_processor"]["special_tokens"]["[SEP]"]
    (frame / "tokenizer.json").write_text(json.dumps(content))
    # The library panics, which is no Exception of Python's.
    with pytest.raises(UserError, match="tokenizer.json is damaged .no entry found for key.*download it again"):
        Tokenizer(str(frame))
