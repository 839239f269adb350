"""English captions of shapes scenes: lower case, varied in wording, true of the picture."""

import numpy as np

from imagen_jax.data.shapes_scene import Object, Scene

_PLURALS = {"cross": "crosses"}
NUMBERS = {2: "two", 3: "three", 4: "four"}
_RELATION_PHRASES = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "on top of"),
    "below": ("below", "under"),
}
# Half of the captions are bare, so that the plainest prompt is the one the model knows best.
_BARE_RATE = 0.5
_FRAMES = ("a picture of {}", "an image of {}", "a drawing of {}")
# A small or large object is called so this often; otherwise its size goes unsaid.
_SIZE_SAID_RATE = 0.75


def _words(one: Object, rng: np.random.Generator) -> str:
    said = one.size != "medium" and rng.random() < _SIZE_SAID_RATE
    return f"{one.size} {one.colour} {one.shape}" if said else f"{one.colour} {one.shape}"


def with_article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(shape: str) -> str:
    """The word for several objects of a shape."""
    return _PLURALS.get(shape, shape + "s")


def _framed(body: str, be: str, rng: np.random.Generator) -> str:
    if rng.random() < _BARE_RATE:
        return body
    frames = (*_FRAMES, f"there {be} {{}}")
    return frames[rng.integers(len(frames))].format(body)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One caption of `scene`, such as "a small red cube on top of a large blue sphere".

    Args:
      scene: what the picture holds.
      rng: chooses the wording; nothing else.
    """
    if scene.kind == "count":
        (one,) = scene.objects
        return _framed(f"{NUMBERS[scene.count]} {one.colour} {plural(one.shape)}", "are", rng)
    if scene.kind == "single":
        words = _words(scene.objects[0], rng)
        body = f"one {words}" if rng.random() < 0.1 else with_article(words)
        return _framed(body, "is", rng)
    named = [with_article(_words(one, rng)) for one in scene.objects]
    if scene.relation is not None:
        phrases = _RELATION_PHRASES[scene.relation]
        return _framed(f"{named[0]} {phrases[rng.integers(len(phrases))]} {named[1]}", "is", rng)
    return _framed(f"{named[0]}, {named[1]} and {named[2]}", "are", rng)
