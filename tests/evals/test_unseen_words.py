"""Prompts in unseen words, and their scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from imagen_jax.data.shapes import draw, eval_prompts
from imagen_jax.data.shapes_words import COLOUR_WORDS, KINDS, RELATION_WORDS, SHAPE_WORDS, WordsPrompt, words_prompts
from imagen_jax.evals.unseen_words import UnseenWords, share
from imagen_jax.sampling.cascade import Cascade
from tests.untrained import untrained_cascade

PROMPTS = words_prompts(3, 60)
CAPTIONS = [caption for caption, _ in eval_prompts(0, 2000, 2000, 200, 200)]


def test_the_seen_prompts_are_captions_and_the_unseen_words_are_in_none() -> None:
    known = {word for caption in CAPTIONS for word in caption.replace(",", "").split()}
    tables = (COLOUR_WORDS, SHAPE_WORDS, RELATION_WORDS)
    phrases = [phrase for table in tables for row in table.values() for phrase in row]
    for phrase in phrases:
        assert not all(word in known for word in phrase.split()), phrase
    assert len(set(phrases)) == len(phrases)
    for one in PROMPTS:
        assert set(one.seen.split()) <= known, one.seen
        assert one.unseen != one.seen


def test_both_prompts_differ_in_what_is_unseen_alone() -> None:
    for one in PROMPTS:
        first = one.scene.objects[0]
        if one.kind == "colours":
            assert one.word in COLOUR_WORDS[first.colour] and one.unseen.endswith(f"{one.word} {first.shape}")
        elif one.kind == "shapes":
            assert one.word in SHAPE_WORDS[first.shape] and one.unseen.endswith(f"{first.colour} {one.word}")
        elif one.kind == "typos":
            (old,) = set(one.seen.split()) - set(one.unseen.split()) - {"a", "an"}
            assert set(one.word) <= set(old) and old[0] == one.word[0] and one.word in one.unseen
        elif one.kind == "templates":
            assert one.seen in one.unseen
    assert {one.kind for one in PROMPTS} == set(KINDS) and len(PROMPTS) == 60 * len(KINDS)
    assert [one.unseen for one in words_prompts(3, 60)] == [one.unseen for one in PROMPTS]
    assert [one.unseen for one in words_prompts(4, 60)] != [one.unseen for one in PROMPTS]


def test_one_who_knows_the_words_scores_alike_and_one_who_does_not_by_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = words_prompts(1, 24)
    rng = np.random.default_rng(0)

    def drawn(cascade: Cascade, captions: list[str], label: str, **_: int) -> list[np.ndarray]:
        """The pictures that were asked for; of shapes in unseen words, those of the prompt before."""

        def scene(at: int, one: WordsPrompt) -> WordsPrompt:
            return prompts[at - 1] if one.kind == "shapes" and label == "unseen words" else one

        return [np.stack([draw(scene(at, one).scene, rng, 64) for at, one in enumerate(prompts)])]

    monkeypatch.setattr(Cascade, "sample", drawn)
    UnseenWords(num_prompts=24).evaluate(untrained_cascade(), str(tmp_path))
    found = json.loads((tmp_path / "words.json").read_text())["words"]
    for kind in KINDS:
        assert found[kind]["seen"]["share"] > 0.98
        assert (found[kind]["unseen"]["share"] < 0.6) if kind == "shapes" else (found[kind]["unseen"]["share"] > 0.98)
    assert set(found["colours"]["by_word"]) <= {word for row in COLOUR_WORDS.values() for word in row}
    assert (tmp_path / "eval" / "words.png").is_file()


def test_the_interval_is_about_the_exact_one() -> None:
    for good, number in ((0, 40), (7, 50), (95, 96)):
        found = share([at < good for at in range(number)])
        low = beta.ppf(0.025, good, number - good + 1) if good else 0.0
        high = beta.ppf(0.975, good + 1, number - good)
        assert found["share"] == good / number
        assert found["low"] == pytest.approx(low, abs=0.03) and found["high"] == pytest.approx(high, abs=0.03)
