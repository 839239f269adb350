"""Detection of the watermark after a crop and JPEG, and the change that it makes.

    python -m benchmarks.watermark [--crops=10] [--shapes=40] [--keys=200]

Images are the photographs of data/build_photos.py and drawn shapes, at 256 and 1024 pixels. Each is marked, cut to nine
tenths of its sides at a random place, written as JPEG of quality 75, and searched. Unmarked ones are searched with many
keys: of them, chance is that of the key. It needs the extra `photos`.
"""

import argparse
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data.build_photos import PHOTOS
from imagen_jax.data.shapes import draw
from imagen_jax.data.shapes_scene import sample_scene
from imagen_jax.safety.watermark import detect, embed


def photos(size: int) -> Iterator[np.ndarray]:
    """The centre squares of the photographs."""
    for package, file, *_ in PHOTOS.values():
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        image = Image.open(Path(spec.origin).parent / file).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        yield np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def shapes(size: int, number: int) -> Iterator[np.ndarray]:
    """Pictures of drawn shapes."""
    for seed in range(number):
        rng = np.random.default_rng(seed)
        yield draw(sample_scene(rng), rng, image_size=size)


def attacked(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nine tenths of an image's sides, at a random place, as JPEG of quality 75."""
    size = image.shape[0]
    side = round(0.9 * size)
    top, left = rng.integers(0, size - side + 1, 2)
    buffer = io.BytesIO()
    Image.fromarray(image[top : top + side, left : left + side]).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def main() -> None:
    """Prints a row for each kind and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=10, help="of each image")
    parser.add_argument("--shapes", type=int, default=40, help="pictures of drawn shapes")
    parser.add_argument("--keys", type=int, default=200, help="for each unmarked image of 256 pixels")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    for size in (256, 1024):
        for kind, images in (("photographs", photos(size)), ("shapes", shapes(size, args.shapes))):
            scores, quality, unmarked = [], [], []
            for image in images:
                marked = embed(image)
                error = np.mean((marked.astype(float) - image) ** 2)
                quality.append(10 * np.log10(255**2 / error))
                scores += [detect(attacked(marked, rng)).score for _ in range(args.crops)]
                keys = args.keys if size == 256 else args.keys // 20
                unmarked += [detect(image, f"key {number}").score for number in range(keys)]
            threshold = detect(image).threshold
            found = np.mean(np.array(scores) >= threshold)
            print(
                f"{kind} {size}: found {found:.4f} of {len(scores)}, least score {min(scores):.1f} (threshold "
                f"{threshold:.2f}); PSNR {min(quality):.1f} to {max(quality):.1f}, median {np.median(quality):.1f} dB; "
                f"unmarked: {len(unmarked)} searches, highest {max(unmarked):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
