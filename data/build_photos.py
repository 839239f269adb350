"""Builds a tiny corpus of ten real photographs that ship inside installed Python packages; downloads nothing.

Enough to see that a model can overfit photographs, and nothing more. Two captions a picture; all in split
train. Needs the extra `photos` (scikit-image, scikit-learn, matplotlib):

    imagen_jax script data/build_photos.py --out corpora/photos
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from imagen_jax.commands.parts.buckets import bucket_errors
from imagen_jax.commands.parts.corpus_flags import add_form_flags, form_settings
from imagen_jax.errors import UserError, exit_code

# name: (package, file inside it, origin and licence, captions)
PHOTOS = {
    "astronaut": (
        "skimage", "data/astronaut.png", "NASA, public domain",
        (
            "a smiling astronaut in an orange space suit in front of a flag",
            "a woman with short hair in an orange space suit, a model of a space shuttle behind her",
        ),
    ),
    "cat": (
        "skimage", "data/chelsea.png", "Stefan van der Walt, CC0",
        (
            "close-up of the face of a tabby cat with green eyes",
            "a brown striped cat looking to the side",
        ),
    ),
    "coffee": (
        "skimage", "data/coffee.png", "Rachel Michetti, CC0",
        (
            "a red cup of espresso on a red saucer with a spoon",
            "a cup of coffee on a wooden table, seen from above",
        ),
    ),
    "rocket": (
        "skimage", "data/rocket.jpg", "SpaceX, public domain",
        (
            "a white rocket on its launch pad at dusk",
            "a tall rocket between two towers under a dark blue sky",
        ),
    ),
    "galaxies": (
        "skimage", "data/hubble_deep_field.jpg", "NASA, public domain",
        (
            "many small galaxies in black space",
            "a telescope photograph of the deep sky full of distant galaxies",
        ),
    ),
    "retina": (
        "skimage", "data/retina.jpg", "Mikael Häggström, CC0",
        (
            "the back of a human eye, an orange disc with red blood vessels",
            "a medical photograph of a retina",
        ),
    ),
    "motorcycle": (
        "skimage", "data/motorcycle_left.png", "Middlebury 2014 stereo benchmark",
        (
            "a red motorcycle parked in a garage",
            "a red and black motorcycle in front of shelves",
        ),
    ),
    "pagoda": (
        "sklearn", "datasets/images/china.jpg", "danielbuechele, CC BY 2.0",
        (
            "a Chinese pagoda with tiled roofs above a lake",
            "a red and green temple tower under a pale blue sky",
        ),
    ),
    "flower": (
        "sklearn", "datasets/images/flower.jpg", "vultilion, CC BY 2.0",
        (
            "an orange dahlia in bloom",
            "a round orange flower in front of dark green leaves",
        ),
    ),
    "officer": (
        "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "US Navy, public domain",
        (
            "an elderly navy officer with glasses and a white cap",
            "portrait of a woman in a dark uniform before a flag",
        ),
    ),
}  # fmt: skip


@bucket_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="corpus directory to write")
    parser.add_argument("--image_size", type=int, default=64, help="side in pixels (default %(default)s)")
    parser.add_argument("--vocab_size", type=int, default=256, help="most SentencePiece pieces (default %(default)s)")
    add_form_flags(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus of other settings")
    options = parser.parse_args()

    from imagen_jax.data.builder import BuildConfig, build_corpus
    from imagen_jax.data.raw import RawExample, Source

    examples = []
    for name, (package, file, licence, captions) in PHOTOS.items():
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise UserError(f"package {package!r} is not installed; install the extra: imagen_jax[photos]")
        path = Path(found.origin).parent / file
        if not path.is_file():
            raise UserError(f"{path} is missing; install another release of {package}")
        for number, caption in enumerate(captions):
            examples.append(
                RawExample(
                    key=f"{name}-{number}",
                    image=str(path),
                    caption=caption,
                    meta={"file": f"{package}/{file}", "licence": licence},
                )
            )
    settings = {"kind": "photos", "captions": {example.key: example.caption for example in examples}}
    source = Source(parts=[lambda: iter(examples)], num_examples=len(examples), settings=settings)
    config = BuildConfig(
        name="photos", image_size=options.image_size, vocab_size=options.vocab_size, **form_settings(options)
    )
    report = build_corpus(source, options.out, config, overwrite=options.overwrite)
    print(f"{options.out}: {report}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
