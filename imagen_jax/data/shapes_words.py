"""Prompts of drawn shapes in words that no caption of the corpus has: they ask what a text encoder knows beyond those.

Each prompt is said twice: once in the captions' own words, once with the unseen ones in their place. The two ask for
the same scene, so the difference of their scores is the words'.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Mapping

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.data.shapes_captions import with_article
from imagen_jax.data.shapes_scene import Object, Scene, sample_scene
from imagen_jax.errors import UserError

# Names that people give to a hue of the corpus; those between two hues, as "salmon", are left out.
COLOUR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet", "ruby"),
    "orange": ("tangerine", "pumpkin coloured", "apricot"),
    "yellow": ("lemon coloured", "golden", "canary"),
    "green": ("emerald", "grassy", "jade"),
    "cyan": ("turquoise", "teal", "aqua"),
    "blue": ("azure", "cobalt", "sapphire"),
    "purple": ("violet", "plum coloured", "amethyst"),
    "pink": ("magenta", "fuchsia", "rose coloured"),
}
# A cube is drawn as a square, a sphere as a disc.
SHAPE_WORDS: Mapping[str, tuple[str, ...]] = {
    "sphere": ("ball", "orb", "globe"),
    "cube": ("box", "block", "square"),
    "triangle": ("pyramid", "wedge", "three-sided figure"),
    "star": ("pentagram", "asterisk", "starfish"),
    "ring": ("hoop", "donut", "band"),
    "cross": ("plus sign", "crucifix", "letter x"),
}
RELATION_WORDS: Mapping[str, tuple[str, ...]] = {
    "left": ("on the left-hand side of", "west of", "leftward of"),
    "right": ("on the right-hand side of", "east of", "rightward of"),
    "above": ("over", "atop", "higher than"),
    "below": ("beneath", "underneath", "lower than"),
}
SEEN_RELATIONS: Mapping[str, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
TEMPLATES = ("show me {}", "can you draw {}?", "{}, please", "i would like to see {}", "photo: {}")
KINDS = ("colours", "shapes", "relations", "templates", "typos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordsPrompt:
    """One scene, asked for twice.

    Args:
      kind: one of KINDS: what is unseen in `unseen`.
      word: the unseen word, template, or misspelt word.
      seen: the prompt in the captions' words.
      unseen: the prompt with what is unseen.
      scene: what both ask for.
    """

    kind: str
    word: str
    seen: str
    unseen: str
    scene: Scene


def misspelt(word: str, rng: np.random.Generator) -> str:
    """A word with two neighbouring letters exchanged, one left out or one doubled; its first letter stays.

    Raises:
      UserError: it has fewer than three letters.
    """
    if len(word) < 3:
        raise UserError(f"a word to misspell must have three letters at least; got {word!r}")
    while True:
        at, how = int(rng.integers(1, len(word) - 1)), int(rng.integers(3))
        made = (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )[how]
        if made != word:
            return made


def words_prompts(seed: int, num_prompts: int) -> list[WordsPrompt]:
    """Prompts of every kind, as many of each; no scene holds a pair of HELDOUT.

    Args:
      seed: fixes the prompts.
      num_prompts: of each kind, at least 1.
    """
    check_count("num_prompts", num_prompts)
    return [
        _prompt(kind, index, np.random.default_rng((seed, zlib.crc32(f"words/{kind}".encode()), index)))
        for kind, index in itertools.product(KINDS, range(num_prompts))
    ]


def _prompt(kind: str, index: int, rng: np.random.Generator) -> WordsPrompt:
    scene = sample_scene(rng, "two" if kind == "relations" else "single")
    plain = dataclasses.replace(scene, objects=tuple(dataclasses.replace(one, size="medium") for one in scene.objects))
    first = plain.objects[0]
    seen = with_article(_named(first))
    if kind == "relations":
        assert plain.relation is not None
        second = with_article(_named(plain.objects[1]))
        word = _of(RELATION_WORDS[plain.relation], index)
        unseen = f"{seen} {word} {second}"
        seen = f"{seen} {SEEN_RELATIONS[plain.relation]} {second}"
    elif kind == "templates":
        word = _of(TEMPLATES, index)
        unseen = word.format(seen)
    elif kind == "colours":
        word = _of(COLOUR_WORDS[first.colour], index)
        unseen = with_article(f"{word} {first.shape}")
    elif kind == "shapes":
        word = _of(SHAPE_WORDS[first.shape], index)
        unseen = with_article(f"{first.colour} {word}")
    else:
        wrong = first.colour if index % 2 else first.shape
        word = misspelt(wrong, rng)
        unseen = with_article(_named(first).replace(wrong, word))
    return WordsPrompt(kind=kind, word=word, seen=seen, unseen=unseen, scene=plain)


def _named(one: Object) -> str:
    return f"{one.colour} {one.shape}"


def _of(words: tuple[str, ...], index: int) -> str:
    return words[index % len(words)]
