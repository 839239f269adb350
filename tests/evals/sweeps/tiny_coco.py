"""A folder like COCO's with a handful of pictures, for tests of sweeps."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = ("a dog", "two red cups on a table", "a man who rides", "snow")


def write_coco(folder: Path, num_images: int = 13) -> Path:
    """Writes val2014: smooth pictures of two sizes with a caption each, and the first with a second one."""
    images, annotations = [], []
    (folder / "val2014").mkdir(parents=True)
    (folder / "annotations").mkdir()
    rng = np.random.default_rng(5)
    for number in range(num_images):
        name = f"COCO_val2014_{number:012d}.jpg"
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((48 + number % 2, 40), Image.Resampling.BICUBIC).save(folder / "val2014" / name, quality=95)
        images.append({"id": number, "file_name": name})
        text = f"{WORDS[number % 4]} {number}"
        annotations.append({"id": 100 + number, "image_id": number, "caption": text})
    annotations.append({"id": 99, "image_id": 0, "caption": "once more"})
    content = {"images": images, "annotations": annotations}
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
    return folder
