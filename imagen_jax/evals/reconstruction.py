"""Reconstruction: the distance of images drawn from a small corpus's captions to the originals.

PSNR is against the corpus image at the size of the last stage; colour drift is the largest difference, over
R, G and B, between the mean of the drawn image and the mean of the original, in steps of 255.
"""

import dataclasses
import os

import numpy as np

from imagen_jax.data.records import Corpus
from imagen_jax.errors import UserError
from imagen_jax.files import write_json
from imagen_jax.image_files import centre_square, decode_image
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import write_png
from imagen_jax.typing import UInt8

MAX_IMAGES = 256


def psnr_db(image: UInt8[np.ndarray, "h w 3"], original: UInt8[np.ndarray, "h w 3"]) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    error = np.mean((image.astype(np.float64) - original) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def colour_drift(image: UInt8[np.ndarray, "h w 3"], original: UInt8[np.ndarray, "h w 3"]) -> float:
    """Largest difference of the mean colours over the channels, in steps of 255."""
    difference = image.astype(np.float64).mean((0, 1)) - original.astype(np.float64).mean((0, 1))
    return float(np.abs(difference).max())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Draws every image of a corpus split from its caption and compares.

    Args:
      corpus_dir: the corpus that was learned; its image size must be the last stage's.
      split: of the corpus.
      seed: of the noise.
    """

    corpus_dir: str
    split: str = "train"
    seed: int = 0

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        """Writes RUN_DIR/photos.json and, beside each other, RUN_DIR/photos/NNN_{original,drawn}.png."""
        corpus = Corpus(self.corpus_dir)
        number = corpus.num_examples(self.split)
        if number > MAX_IMAGES:
            raise UserError(
                f"split {self.split!r} of {self.corpus_dir!r} has {number} images; "
                f"reconstruction is for at most {MAX_IMAGES}, which a cascade can overfit"
            )
        size = cascade.stages[-1].stage.image_size
        if corpus.image_size != size:
            raise UserError(
                f"the corpus has {corpus.image_size}-pixel images, the last stage draws {size}; "
                f"build the corpus with image_size {size}"
            )
        records = list(corpus.records(self.split))
        captions = [record.caption for record in records]
        drawn = cascade.sample(captions, seed=self.seed, label="reconstruction")[-1]
        rows = []
        for i, (record, image) in enumerate(zip(records, drawn, strict=True)):
            original = np.asarray(centre_square(decode_image(record.image), size))
            names = {kind: os.path.join("photos", f"{i:03d}_{kind}.png") for kind in ("original", "drawn")}
            write_png(os.path.join(run_dir, names["original"]), original, {"prompt": record.caption})
            info = {"prompt": record.caption, "seed": self.seed, "config_hash": cascade.config_hash}
            write_png(os.path.join(run_dir, names["drawn"]), image, info)
            figures = {"psnr_db": psnr_db(image, original), "colour_drift": colour_drift(image, original)}
            rows.append({"caption": record.caption, **figures, **names})
            print(f"{figures['psnr_db']:6.2f} dB  drift {figures['colour_drift']:.2f}  {record.caption}")
        write_json(os.path.join(run_dir, "photos.json"), rows)
