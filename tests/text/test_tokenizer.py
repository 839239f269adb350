"""SentencePiece training and loading."""

import os
import pathlib

import pytest
import sentencepiece

from imagen_jax.errors import UserError
from imagen_jax.text.tokenizer import load_vocabulary, train_sentencepiece
from tests.text.conftest import COLOURS, RELATIONS, SHAPES, two_objects

CAPTIONS = [caption for caption, _ in two_objects()]


def test_ids_are_t5s_and_text_comes_back(vocabulary_path: str) -> None:
    vocabulary = load_vocabulary(vocabulary_path)
    assert (vocabulary.pad_id(), vocabulary.eos_id(), vocabulary.unk_id(), vocabulary.bos_id()) == (0, 1, 2, -1)
    assert vocabulary.vocab_size() <= 256
    for caption in CAPTIONS[::97]:
        ids = vocabulary.encode(caption)
        assert min(ids) > 2 and max(ids) < vocabulary.vocab_size()
        assert vocabulary.decode(ids) == caption


def test_every_word_of_a_small_corpus_is_one_piece(vocabulary_path: str) -> None:
    vocabulary = load_vocabulary(vocabulary_path)
    for word in (*COLOURS, *SHAPES, *(w for r in RELATIONS for w in r.split())):
        assert len(vocabulary.encode(word)) == 1, word


def test_training_is_deterministic_quiet_and_leaves_one_file(tmp_path: pathlib.Path, capfd) -> None:
    for name in ("a", "b"):
        train_sentencepiece(iter([*CAPTIONS, "", "  "]), str(tmp_path / name), 128)
    assert capfd.readouterr() == ("", "")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_vocabulary(str(tmp_path / "a")).vocab_size() == 128


def test_words_of_a_very_long_caption_are_known(tmp_path: pathlib.Path) -> None:
    """SentencePiece's trainer passes over sentences of more than 4192 bytes."""
    long = " ".join(["a red cube"] * 600) + " zyx " + "\N{SNOWMAN}" * 3000
    train_sentencepiece(["a blue ring", long], str(tmp_path / "v.model"), 128)
    vocabulary = load_vocabulary(str(tmp_path / "v.model"))
    assert vocabulary.unk_id() not in vocabulary.encode("zyx cube \N{SNOWMAN}")


@pytest.mark.parametrize(
    ("captions", "vocab_size", "message"),
    [
        ([], 64, "there are no captions"),
        (["", " "], 64, "there are no captions"),
        (CAPTIONS, 8, "8 pieces on"),
    ],
)
def test_training_refuses(tmp_path: pathlib.Path, captions: list[str], vocab_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_sentencepiece(captions, str(tmp_path / "v.model"), vocab_size)
    assert os.listdir(tmp_path) == []


def test_missing_foreign_and_other_files_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no vocabulary file at .*nowhere.model"):
        load_vocabulary(str(tmp_path / "nowhere.model"))
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_vocabulary(str(tmp_path / "text.model"))
    with open(tmp_path / "other.model", "wb") as file:  # SentencePiece's own default ids
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS),
            model_writer=file,
            vocab_size=64,
            model_type="bpe",
            minloglevel=2,
        )
    with pytest.raises(UserError, match=r"pad and eos ids \(-1, 2\); expected \(0, 1\)"):
        load_vocabulary(str(tmp_path / "other.model"))
