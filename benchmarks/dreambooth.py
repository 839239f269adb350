"""Does a network of drawn shapes learn a new shape and its word from a few pictures, and keep what it knew?

    python -m benchmarks.dreambooth corpora runs/booth
    imagen_jax cache_text --gin_file=configs/experiments/dreambooth_base.gin --gin.CORPUS_DIR=runs/booth/corpus …
    …                                     (docs/finetuning.md has all commands)
    python -m benchmarks.dreambooth judge runs/booth/base runs/booth/subject

The network is trained on single objects of five shapes and never sees a star. Then it is given `NUM_PICTURES` pictures
of stars, called "gorp", in `SHOWN` colours. The exact judge reads pictures of the known shapes and of gorps, drawn from
the same noise before and after; a gorp counts where the judge sees one star of the colour asked for.
"""

import argparse
from collections.abc import Iterator

import numpy as np

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.raw import RawExample, Source
from imagen_jax.data.shapes import draw
from imagen_jax.data.shapes_captions import caption, with_article
from imagen_jax.data.shapes_scene import COLOURS, SHAPES, SIZES, Object, Scene
from imagen_jax.evals.shapes_judge import judge
from imagen_jax.sampling.cascade import Cascade

WORD, SUBJECT = "gorp", "star"
SHOWN = ("red", "green", "blue", "yellow")
NUM_PICTURES, NUM_PRIOR, IMAGE_SIZE = 8, 160, 32
KNOWN = tuple(shape for shape in SHAPES if shape != SUBJECT)
# Prompts of each pair of colour and shape, and of each colour of the subject.
PER_KNOWN, PER_SUBJECT = 12, 16


def scene_of(colour: str, shape: str, size: str = "medium") -> Scene:
    """One object."""
    return Scene(kind="single", objects=(Object(colour=colour, shape=shape, size=size),), count=1)


def known_examples(number: int) -> Iterator[RawExample]:
    """Single objects of the known shapes, in every colour and size."""
    for index in range(number):
        rng = np.random.default_rng((0, index))
        scene = scene_of(*(str(rng.choice(values)) for values in (COLOURS, KNOWN, SIZES)))
        yield RawExample(key=f"known-{index}", image=draw(scene, rng, IMAGE_SIZE), caption=caption(scene, rng))


def subject_examples() -> Iterator[RawExample]:
    """The few pictures of the new shape."""
    for index in range(NUM_PICTURES):
        rng, colour = np.random.default_rng((1, index)), SHOWN[index % len(SHOWN)]
        image = draw(scene_of(colour, SUBJECT), rng, IMAGE_SIZE)
        yield RawExample(key=f"subject-{index}", image=image, caption=with_article(f"{colour} {WORD}"))


def corpora(directory: str, number: int) -> None:
    """Writes corpus/, pictures/ (the subject) and prior.txt, captions of the class for its own pictures."""
    known = Source(parts=[lambda: known_examples(number)], num_examples=number, settings={"known": number})
    build_corpus(known, f"{directory}/corpus", BuildConfig(name="known", image_size=IMAGE_SIZE, vocab_size=128))
    few = Source(parts=[subject_examples], num_examples=NUM_PICTURES, settings={"subject": WORD})
    build_corpus(few, f"{directory}/pictures", BuildConfig(name="subject", image_size=IMAGE_SIZE))
    rng = np.random.default_rng(2)
    captions = [caption(scene_of(str(rng.choice(COLOURS)), str(rng.choice(KNOWN))), rng) for _ in range(NUM_PRIOR)]
    with open(f"{directory}/prior.txt", "w", encoding="utf-8") as file:
        file.write("\n".join(captions) + "\n")


def shares(cascade: Cascade) -> dict[str, float]:
    """Shares of the prompts whose picture shows what they ask for, by kind."""
    known = [(colour, shape) for colour in COLOURS for shape in KNOWN for _ in range(PER_KNOWN)]
    new = [(colour, SUBJECT) for colour in COLOURS for _ in range(PER_SUBJECT)]
    words = [with_article(f"{colour} {WORD if shape == SUBJECT else shape}") for colour, shape in known + new]
    images = cascade.sample(words, seed=3, label="")[-1]
    right = [
        judge(image, scene_of(colour, shape)).both for image, (colour, shape) in zip(images, known + new, strict=True)
    ]
    of = {"known": right[: len(known)]}
    for name, colours in (("shown colours", SHOWN), ("other colours", tuple(set(COLOURS) - set(SHOWN)))):
        of[f"{WORD}, {name}"] = [
            r for r, (colour, _) in zip(right[len(known) :], new, strict=True) if colour in colours
        ]
    return {name: float(np.mean(values)) for name, values in of.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    made = modes.add_parser("corpora")
    made.add_argument("directory")
    made.add_argument("--number", type=int, default=6000, help="pictures of known shapes (default %(default)s)")
    modes.add_parser("judge").add_argument("runs", nargs="+", help="run directories to compare")
    options = parser.parse_args()
    if options.mode == "corpora":
        corpora(options.directory, options.number)
        return
    for run in options.runs:
        found = ", ".join(f"{name} {share:.3f}" for name, share in shares(Cascade.load(run)).items())
        print(f"{run}: {found}")


if __name__ == "__main__":
    main()
