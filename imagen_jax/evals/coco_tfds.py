"""COCO's captions and images out of `coco_captions`, as TensorFlow Datasets prepares it, into the folder of a download.

TFDS keeps the split of arXiv 1412.2306: its val, test and restval together are val2014. Images stand in its records as
they were encoded, so what is written are COCO's own files. Numbers of images and captions are COCO's.
"""

import os
from collections.abc import Mapping
from typing import Any

from imagen_jax.checks import check_path
from imagen_jax.data.tfds_folder import holds_tfds, tfds_examples
from imagen_jax.errors import UserError
from imagen_jax.evals.coco import CocoSplit, annotations_path, read_coco
from imagen_jax.files import files_under, is_file_name, make_dirs, write_bytes, write_json
from imagen_jax.progress import Progress

# By COCO's split, those of TFDS; it has captions of 2014 alone.
TFDS_SPLITS: Mapping[str, tuple[str, ...]] = {"val2014": ("val", "test", "restval"), "train2014": ("train",)}


def unpack_coco(dataset: str, folder: str, split: str) -> CocoSplit:
    """Writes a split as it is downloaded from COCO, and reads it; images that are there already stay.

    The annotations are written last: without them `read_coco` takes the folder for unfinished.

    Args:
      dataset: folder of a version of the prepared dataset, such as coco_captions/2014/1.1.0; here or in a bucket.
      folder: to write annotations/ and SPLIT/ to; val2014 takes 6.6 GB.
      split: a key of TFDS_SPLITS.

    Raises:
      UserError: the folder is no such dataset or damaged, or holds an example that cannot be COCO's.
    """
    check_path("the dataset", dataset)
    check_path("the folder", folder)
    if split not in TFDS_SPLITS:
        raise UserError(f"split {split!r} is not in TFDS's coco_captions; expected one of {', '.join(TFDS_SPLITS)}")
    if not holds_tfds(dataset):
        raise UserError(
            f"{dataset} is no prepared dataset of TFDS: it lacks dataset_info.json or features.json; give the folder "
            "of a version, such as coco_captions/2014/1.1.0 (`tfds build coco_captions` prepares it)"
        )
    images = os.path.join(folder, split)
    make_dirs(images)
    make_dirs(os.path.join(folder, "annotations"))
    there = files_under(images)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    with Progress(0, f"unpack {split}", "image") as progress:
        for example in tfds_examples(dataset, TFDS_SPLITS[split]):
            number, name = _named(dataset, example)
            content["images"].append({"id": number, "file_name": name})
            for caption, text in _captions(dataset, name, example):
                content["annotations"].append({"id": caption, "image_id": number, "caption": text})
            encoded = example.get("image", [])
            if encoded and encoded[0] and there.get(name) != len(encoded[0]):
                write_bytes(os.path.join(images, name), encoded[0])
            progress.update()
    write_json(annotations_path(folder, split), content, indent=None)
    return read_coco(folder, split)


def _named(dataset: str, example: Mapping[str, list[Any]]) -> tuple[int, str]:
    """Number and file name of an example's image."""
    numbers, names = example.get("image/id", []), example.get("image/filename", [])
    name = names[0].decode(errors="replace") if len(names) == 1 and isinstance(names[0], bytes) else ""
    if len(numbers) != 1 or not isinstance(numbers[0], int) or not is_file_name(name):
        raise UserError(
            f"{dataset} has an example of image/id {numbers[:3]} and image/filename {names[:3]}; expected the number "
            "and the file name of one image: give TFDS's coco_captions"
        )
    return numbers[0], name


def _captions(dataset: str, name: str, example: Mapping[str, list[Any]]) -> list[tuple[int, str]]:
    numbers, texts = example.get("captions/id", []), example.get("captions/text", [])
    try:
        return [(int(number), text.decode()) for number, text in zip(numbers, texts, strict=True)]
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"the captions of {name} in {dataset} cannot be read ({error}); prepare the dataset again"
        ) from error
