"""The shapes corpus: what scenes hold, what captions say, and what the seed fixes."""

import collections
import json
import re

import numpy as np
import pytest

from imagen_jax.data import shapes
from imagen_jax.data.shapes import COLOURS, HELDOUT, KINDS, RELATIONS, SHAPES, SIZES, Object, Scene
from imagen_jax.errors import UserError

# A reader of captions that shares nothing with their writer.
_SINGULAR = {**{name: name for name in SHAPES}, **{f"{name}s": name for name in SHAPES}, "crosses": "cross"}
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
_NOUN_PHRASE = re.compile(
    rf"\b({'|'.join(_NUMBERS)}) (?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(_SINGULAR)})\b"
)
_RELATION_WORDS = {
    "left": r"\bleft\b",
    "right": r"\bright\b",
    "above": r"\babove\b|\bon top of\b",
    "below": r"\bbelow\b|\bunder\b",
}


def _parse(text: str) -> tuple[list[tuple[str, str]], list[str], int, str | None]:
    """Pairs, sizes said, count and relation that a caption tells."""
    phrases = _NOUN_PHRASE.findall(text)
    relations = [name for name, words in _RELATION_WORDS.items() if re.search(words, text)]
    assert len(relations) <= 1, text
    pairs = [(colour, _SINGULAR[noun]) for _, _, colour, noun in phrases]
    count = sum(_NUMBERS[number] for number, *_ in phrases)
    return pairs, [size for _, size, _, _ in phrases], count, relations[0] if relations else None


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [shapes.sample_scene(rng) for _ in range(4000)]


def test_captions_tell_exactly_what_the_scene_holds(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(1)
    for scene in scenes:
        text = shapes.caption(scene, rng)
        pairs, sizes, count, relation = _parse(text)
        assert pairs == [one.pair for one in scene.objects], text
        assert (count, relation) == (scene.count, scene.relation), text
        for said, one in zip(sizes, scene.objects, strict=True):
            assert said in ("", one.size), text
        assert text == text.lower()
        assert not re.search(r"\ba orange|\ban (?!orange|image)", text), text


def test_wording_varies() -> None:
    rng = np.random.default_rng(0)
    two = (
        Object(colour="red", shape="cube", size="small"),
        Object(colour="blue", shape="sphere", size="large"),
    )
    scene = Scene(kind="two", objects=two, count=2, relation="above")
    texts = {shapes.caption(scene, rng) for _ in range(400)}
    assert len(texts) >= 30
    assert "a small red cube on top of a large blue sphere" in texts
    assert "a red cube above a blue sphere" in texts


def test_the_mix_of_kinds(scenes: list[Scene]) -> None:
    rates = {kind: np.mean([scene.kind == kind for scene in scenes]) for kind in KINDS}
    assert rates == pytest.approx({"single": 0.28, "count": 0.07, "two": 0.63, "three": 0.02}, abs=0.025)
    twos = [scene.objects for scene in scenes if scene.kind == "two"]
    both_differ = np.mean([a.colour != b.colour and a.shape != b.shape for a, b in twos])
    assert both_differ > 0.75


def test_everything_occurs(scenes: list[Scene]) -> None:
    assert {one.pair for scene in scenes for one in scene.objects} == {
        (colour, shape) for colour in COLOURS for shape in SHAPES
    } - HELDOUT
    assert {one.size for scene in scenes for one in scene.objects} == set(SIZES)
    assert {scene.relation for scene in scenes if scene.kind == "two"} == set(RELATIONS)
    assert {scene.count for scene in scenes} == {1, 2, 3, 4}


def test_heldout_pairs_are_one_a_shape_and_never_train() -> None:
    assert len(COLOURS) == 8 and len(SHAPES) == 6
    assert sorted(shape for _, shape in HELDOUT) == sorted(SHAPES)
    assert len({colour for colour, _ in HELDOUT}) == len(SHAPES)
    rng = np.random.default_rng(2)
    for kind in KINDS:
        training = [shapes.sample_scene(rng, kind) for _ in range(800)]
        assert {scene.kind for scene in training} == {kind}
        assert not any(one.pair in HELDOUT for scene in training for one in scene.objects)
    heldout = [shapes.sample_scene(rng, heldout=True) for _ in range(200)]
    assert {one.pair for scene in heldout for one in scene.objects} == HELDOUT
    assert {scene.kind for scene in heldout} == {"single"}


def test_scenes_survive_json(scenes: list[Scene]) -> None:
    for scene in scenes[:300]:
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_drawn_repeats_counted_objects() -> None:
    star = Object(colour="blue", shape="star")
    assert Scene(kind="count", objects=(star,), count=3).drawn == (star, star, star)
    assert Scene(kind="single", objects=(star,), count=1).drawn == (star,)


@pytest.mark.parametrize(
    "build, part",
    [
        (lambda o: Object(colour="mauve", shape="star"), "mauve"),
        (lambda o: Object(colour="red", shape="blob"), "blob"),
        (lambda o: Object(colour="red", shape="star", size="huge"), "huge"),
        (lambda o: Scene(kind="many", objects=(o,), count=1), "many"),
        (lambda o: Scene(kind="two", objects=(o,), count=2, relation="left"), "expected 2"),
        (lambda o: Scene(kind="two", objects=(o, o), count=2, relation="left"), "differ"),
        (lambda o: Scene(kind="single", objects=(o,), count=2), "count"),
        (lambda o: Scene(kind="count", objects=(o,), count=5), "2, 3, 4"),
        (lambda o: Scene(kind="single", objects=(o,), count=1, relation="left"), "relation"),
        (lambda o: shapes.sample_scene(np.random.default_rng(0), "many"), "many"),
        (lambda o: next(shapes.examples(0, "train", 10, start=5, stop=11)), r"\[5, 11\)"),
    ],
)
def test_nonsense_is_refused(build, part: str) -> None:
    with pytest.raises(UserError, match=part):
        build(Object(colour="red", shape="cube"))


def test_examples_are_a_function_of_seed_and_ranges_join() -> None:
    whole = list(shapes.examples(7, "train", 30))
    parts = [*shapes.examples(7, "train", 30, stop=11), *shapes.examples(7, "train", 30, start=11)]
    late = list(shapes.examples(7, "train", 1000, start=20, stop=30))
    for ours, theirs in [*zip(whole, parts, strict=True), *zip(whole[20:], late, strict=True)]:
        assert ours[0] == theirs[0] and ours[2:] == theirs[2:]
        np.testing.assert_array_equal(ours[1], theirs[1])
    assert whole[3][0] == "shapes-7-train-0000003"
    assert len({one[0] for one in whole}) == 30


@pytest.mark.parametrize("seed, split", [(8, "train"), (7, "val")])
def test_another_seed_or_split_is_another_corpus(seed: int, split: str) -> None:
    ours, theirs = shapes.examples(7, "train", 20), shapes.examples(seed, split, 20)
    for one, other in zip(ours, theirs, strict=True):
        assert one[0] != other[0]
        assert np.any(one[1] != other[1])


def test_eval_prompts_hold_what_is_asked_for() -> None:
    prompts = shapes.eval_prompts(3, 40, 30, 20, 36)
    assert prompts == shapes.eval_prompts(3, 40, 30, 20, 36)
    kinds = collections.Counter("heldout" if scene.objects[0].pair in HELDOUT else scene.kind for _, scene in prompts)
    assert kinds == {"single": 40, "two": 30, "count": 20, "heldout": 36}
    for text, scene in prompts:
        assert _parse(text)[0] == [one.pair for one in scene.objects]
    assert {scene.objects[0].pair for _, scene in prompts[-36:]} == HELDOUT
    assert {scene.kind for _, scene in prompts[-36:]} == {"single"}
