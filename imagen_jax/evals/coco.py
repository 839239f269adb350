"""COCO's captions and images, from a folder as it is downloaded: annotations/captions_SPLIT.json and SPLIT/*.jpg."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from imagen_jax.errors import UserError, listed
from imagen_jax.files import files_under, is_file_name, read_json

SPLITS = ("val2014", "train2014", "val2017", "train2017")


@dataclasses.dataclass(frozen=True)
class CocoSplit:
    """One split, of which only what is whole is kept.

    Attributes:
      folder: where its images lie.
      files: file name of each image with captions, by its number.
      captions: text of each caption of such an image, by its number.
      caption_ids: numbers of each image's captions, by the image's number.
      captions_without_image: numbers of captions whose image is not listed or not there.
      images_without_caption: file names of images without one, listed or not.
    """

    folder: str
    files: Mapping[int, str]
    captions: Mapping[int, str]
    caption_ids: Mapping[int, tuple[int, ...]]
    captions_without_image: tuple[int, ...]
    images_without_caption: tuple[str, ...]

    def told(self) -> str:
        """Counts of what was found and what not, with names."""
        lines = [f"{len(self.files)} images with {len(self.captions)} captions"]
        if self.captions_without_image:
            names = listed([str(one) for one in self.captions_without_image])
            lines.append(f"{len(self.captions_without_image)} captions without image: {names}")
        if self.images_without_caption:
            lines.append(
                f"{len(self.images_without_caption)} images without caption: {listed(self.images_without_caption)}"
            )
        return "; ".join(lines)


def annotations_path(folder: str, split: str) -> str:
    """The file of a split's captions."""
    return os.path.join(folder, "annotations", f"captions_{split}.json")


def read_coco(folder: str, split: str) -> CocoSplit:
    """Reads a split of COCO's captions.

    Args:
      folder: that holds annotations/ and the split's images.
      split: one of SPLITS.

    Raises:
      UserError: a file is missing or damaged, or names files elsewhere.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} of COCO is unknown; expected one of {', '.join(SPLITS)}")
    path = annotations_path(folder, split)
    try:
        content = read_json(path)
        listed_files = {int(one["id"]): one["file_name"] for one in content["images"]}
        rows = [(int(one["id"]), int(one["image_id"]), one["caption"]) for one in content["annotations"]]
    except FileNotFoundError as error:
        raise UserError(
            f"no annotations at {path}; download annotations_trainval{split[-4:]}.zip from cocodataset.org and unpack "
            f"it in {folder}, or unpack TFDS's coco_captions there by data/unpack_coco.py"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); download it again") from error
    _check_rows(path, listed_files, rows)
    images = os.path.join(folder, split)
    there = {name for name in files_under(images) if "/" not in name}
    if not there:
        raise UserError(f"no images in {images}; download {split}.zip from cocodataset.org and unpack it in {folder}")
    known = {number: name for number, name in listed_files.items() if name in there}
    kept = [(caption, image, text) for caption, image, text in rows if image in known and text.strip()]
    ids: dict[int, list[int]] = {}
    for caption, image, _ in kept:
        ids.setdefault(image, []).append(caption)
    files = {number: known[number] for number in sorted(ids)}
    return CocoSplit(
        folder=images,
        files=files,
        captions={caption: text.strip() for caption, _, text in kept},
        caption_ids={number: tuple(sorted(ids[number])) for number in files},
        captions_without_image=tuple(sorted(caption for caption, image, _ in rows if image not in known)),
        images_without_caption=tuple(sorted(there - set(files.values()))),
    )


def _check_rows(path: str, files: Mapping[int, Any], rows: list[tuple[int, int, Any]]) -> None:
    for number, name in files.items():
        if not is_file_name(name):
            raise UserError(f"{path} places image {number} in {name!r}; expected the name of a file: download it again")
    if len({caption for caption, _, _ in rows}) < len(rows):
        raise UserError(f"{path} has two captions of one number; download it again")
    for caption, _, text in rows:
        if not isinstance(text, str):
            raise UserError(f"{path}: caption {caption} is no text; download it again")
