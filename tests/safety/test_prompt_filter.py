"""Refused prompts: what is the same word, what is another, and lists that are none."""

import random
import unicodedata
from pathlib import Path

import pytest

from imagen_jax.errors import UserError
from imagen_jax.files import shipped_file
from imagen_jax.safety.prompt_filter import DEFAULT_LIST, Match, PromptFilter, words

LIST = PromptFilter({"fruit": ["pear", "Red Apple", "crème brûlée"], "street": ["Straße"]})


@pytest.mark.parametrize(
    ("prompt", "entry"),
    [
        ("a pear", "pear"),
        ("PEAR!", "pear"),
        ("(pear)-tree", "pear"),
        ("pear_tree", "pear"),
        ("ｐｅａｒ", "pear"),  # Full width
        ("𝗽𝗲𝗮𝗿", "pear"),  # Mathematical bold
        ("ⓟⓔⓐⓡ", "pear"),
        ("pe\u200bar", "pear"),  # Zero-width space
        ("pe\u00adar", "pear"),  # Soft hyphen
        ("pe\ufe0far", "pear"),  # Variation selector
        ("pe\x00ar", "pear"),
        ("péar", "pear"),
        ("pe\u0301ar", "pear"),
        ("a red  apple", "Red Apple"),
        ("a red\napple", "Red Apple"),
        ("red-apple", "Red Apple"),
        ("creme brulee", "crème brûlée"),
        (unicodedata.normalize("NFD", "CRÈME BRÛLÉE"), "crème brûlée"),
        ("STRASSE", "Straße"),
    ],
)
def test_a_word_is_found_however_it_is_written(prompt, entry):
    assert LIST.match(prompt) == Match(category="street" if entry == "Straße" else "fruit", entry=entry)


@pytest.mark.parametrize(
    "prompt", ["", "pearl", "spear", "pears", "red", "red and apple", "apple red", "rod apple", "p e a r", "🍐"]
)
def test_other_words_pass(prompt):
    assert LIST.match(prompt) is None


def test_marks_that_make_letters_stay():
    """Without its vowel signs, a word of Devanagari would be another."""
    devanagari = PromptFilter({"x": ["किताब"]})
    assert devanagari.match("एक किताब") is not None and devanagari.match("कताब") is None


def test_the_default_list_refuses_each_of_its_entries_within_any_prompt_and_no_caption_of_the_demo():
    found = PromptFilter.load()
    text = Path(shipped_file(DEFAULT_LIST)).read_text()
    lines = [line for line in text.splitlines() if line and line[0] not in "#["]
    assert len(lines) > 40
    rng = random.Random(0)
    for line in lines:
        odd = "".join(rng.choice((one.upper(), one.lower(), one + "\u200d")) for one in line)
        match = found.match(f"a photo, {odd}; oil on canvas")
        assert match is not None and match.entry == line
        assert found.match(f"a{line.replace(' ', 'b')}z") is None
    assert [one for one in Path("data/prompts/demo.txt").read_text().splitlines() if found.match(one)] == []


def test_any_text_has_words():
    """Every character of the first two planes passes, and the form of the form is the form."""
    for start in range(0, 0x20000, 0x1000):
        text = " ".join(map(chr, range(start, start + 0x1000)))
        found = words(text)
        assert words(" ".join(found)) == found


def test_a_list_is_read_with_comments_and_a_byte_order_mark(tmp_path):
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbf# mine\n[a_1]\n one # first\r\n\n[b]\ntwo words\none\n")
    found = PromptFilter.load(tmp_path / "words.txt")
    assert found.match("one") == Match(category="a_1", entry="one")
    assert found.match("Two Words") == Match(category="b", entry="two words")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no entry"),
        (b"[a]\n# nothing\n", "holds no entry"),
        (b"\nword\n", r"line 2 \(word\) stands before any category"),
        (b"[A b]\nword\n", r"line 1 \(\[A b\]\) is no category"),
        (b"[a]\n\n!?\n", r"line 3 \(!\?\) has no letter"),
        (b"[a]\n\xff\n", "cannot be read as a list of words in UTF-8"),
    ],
)
def test_what_is_no_list_is_told_with_its_line(tmp_path, content, message):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        PromptFilter.load(tmp_path / "words.txt")


def test_no_file_and_no_words_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        PromptFilter.load(tmp_path / "none.txt")
    with pytest.raises(UserError, match="has no letter"):
        PromptFilter({"a": ["…"]})
    with pytest.raises(UserError, match="at least one word"):
        PromptFilter({"a": []})
