"""Protocols: all that a published FID depends on besides the images, as named, frozen records.

Scores of one set of images differ by points through the reference set, the choice of captions, and above all the
resize. A record states each; what its publication leaves open stands in `assumed`, so that nobody takes our choice for
the authors'. Extractor and layer are those of FID: Inception v3 of 2015-12-05, layer "2048".
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.evals.features.resize import (
    centre_crop,
    clean_bicubic,
    pil_resized,
    short_side,
    tf1_bilinear,
    torch_bilinear,
)
from imagen_jax.typing import Float, UInt8

INCEPTION_SIZE = 299
ALL = "all"
# "torchvision_crop_then_resize" is "crop_then_resize" by that library's rule: where the crop cannot lie in the middle,
# it begins at the even one of the two pixels, and not always at the first.
GEOMETRIES = ("as_is", "crop_then_resize", "torchvision_crop_then_resize", "short_side_then_crop", "stretch")
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


def _of_pytorch_fid(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "_s _s 3"]:
    # Its network takes 2 x / 255 - 1 where the graph of 2015 takes (x - 128) / 128, which the extractor applies.
    resized = torch_bilinear(image[None], INCEPTION_SIZE)[0]
    return ((resized - np.float32(127.5)) * np.float32(128 / 127.5) + np.float32(128)).astype(np.float32)


# From 8-bit images of any size to what Inception takes.
RESIZES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "tf1": lambda image: tf1_bilinear(image[None], INCEPTION_SIZE)[0],
    "clean": lambda image: clean_bicubic(image, INCEPTION_SIZE),
    "pytorch": _of_pytorch_fid,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything besides the images that an FID depends on.

    Args:
      name: of the record.
      source: the publication or program that it follows.
      split: of COCO, whose images are the reference: "val2014" or "train2014"; captions are val2014's.
      matched: the reference is the images of the chosen captions alone, not the whole split.
      num_images: captions chosen, and images drawn; 0: as many as there are.
      one_per_image: one caption of an image is chosen at most.
      seed: of the choice.
      image_size: side in pixels to which both sets are brought; 0 with geometry "as_is".
      geometry: one of GEOMETRIES.
      filter: of Pillow, on 8-bit pixels, for the resize to image_size: a name of FILTERS.
      resize: to Inception's 299 pixels: "tf1" (torch-fidelity), "clean" (clean-fid) or "pytorch" (pytorch-fid).
      assumed: fields that the source leaves open.
    """

    name: str
    source: str
    split: str = "val2014"
    matched: bool = False
    num_images: int = 30_000
    one_per_image: bool = False
    seed: int = 0
    image_size: int = 256
    geometry: str = "crop_then_resize"
    filter: str = "bicubic"
    resize: str = "tf1"
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, known in (("geometry", GEOMETRIES), ("filter", tuple(FILTERS)), ("resize", tuple(RESIZES))):
            if getattr(self, field) not in known:
                raise UserError(f"Protocol.{field} ({getattr(self, field)!r}) must be one of {', '.join(known)}")
        if (self.geometry == "as_is") != (self.image_size == 0):
            raise UserError(
                f"Protocol.image_size ({self.image_size}) must be 0 with the geometry 'as_is', and only with it"
            )

    @property
    def preparation(self) -> tuple[Any, ...]:
        """The fields that change pixels: two protocols that agree in them share features."""
        return self.image_size, self.geometry, self.filter, self.resize

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "_s _s 3"]:
        """An image as it goes into Inception: float32 [299, 299, 3] in [0, 255]."""
        return RESIZES[self.resize](self.at_size(image)).astype(np.float32)

    def at_size(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_h _w 3"]:
        """An image brought to image_size."""
        height, width = image.shape[:2]
        size, resample = self.image_size, FILTERS[self.filter]
        if self.geometry == "as_is":
            return image
        if self.geometry == "crop_then_resize":
            side = min(height, width)
            return pil_resized(centre_crop(image, side, side), size, size, resample)
        if self.geometry == "torchvision_crop_then_resize":
            side = min(height, width)
            top, left = round((height - side) / 2), round((width - side) / 2)
            return pil_resized(image[top : top + side, left : left + side], size, size, resample)
        if self.geometry == "short_side_then_crop":
            return centre_crop(pil_resized(image, *short_side(height, width, size), resample), size, size)
        return pil_resized(image, size, size, resample)


_CROPS = ("geometry", "filter")
PROTOCOLS: Mapping[str, Protocol] = {
    one.name: one
    for one in (
        Protocol(
            name="imagen_30k",
            source="Imagen, arXiv 2205.11487: 30 000 random captions against the full validation set",
            assumed=("seed", "one_per_image", "resize", *_CROPS),
        ),
        Protocol(
            name="imagen_10k",
            source="imagen_30k with 10 000 captions, as Imagen's ablations, arXiv 2205.11487",
            num_images=10_000,
            assumed=("seed", "one_per_image", "resize", *_CROPS),
        ),
        Protocol(
            name="glide_30k",
            source="GLIDE, arXiv 2112.10741, table 2: 30 000 captions against the entire validation set; DALL-E 2, "
            "arXiv 2204.06125, compares with its figure",
            assumed=("seed", "one_per_image", "resize", *_CROPS),
        ),
        Protocol(
            name="clean_fid_30k",
            source="GigaGAN, arXiv 2303.05511, by its evaluation.py (github.com/mingukkang/GigaGAN): clean-fid, arXiv "
            "2104.11222, against the whole val2014",
            geometry="torchvision_crop_then_resize",
            filter="lanczos",
            resize="clean",
            assumed=("seed", "one_per_image"),
        ),
        Protocol(
            name="clean_fid_10k",
            source="clean_fid_30k with 10 000 captions",
            num_images=10_000,
            geometry="torchvision_crop_then_resize",
            filter="lanczos",
            resize="clean",
            assumed=("seed", "one_per_image", "num_images"),
        ),
        Protocol(
            name="short_side_30k",
            source="MosaicML, github.com/mosaicml/diffusion, issue 21, LargestCenterSquare and the clean-fid script: "
            "30 000 captions of val2014, one an image (the first by its loader's default, any here), against their "
            "images at 512 pixels, shorter side resized, middle cropped",
            matched=True,
            one_per_image=True,
            image_size=512,
            geometry="short_side_then_crop",
            filter="bilinear",
            resize="clean",
            assumed=("seed", "one_per_image"),
        ),
        Protocol(
            name="training_set_30k",
            source="Lafite, arXiv 2111.13792, by issue 24 of github.com/drboog/Lafite: 30 000 texts of val2014 against "
            "the training set; pixels by its dataset_tool.py, texts by its metric_utils.py",
            split="train2014",
            one_per_image=True,
            filter="lanczos",
            assumed=("seed", "resize"),
        ),
        Protocol(
            name="pytorch_fid_30k",
            source="pytorch-fid's own resize, on imagen_30k's images",
            resize="pytorch",
            assumed=("seed", "one_per_image", *_CROPS),
        ),
        Protocol(
            name="torch_fidelity",
            source="torch-fidelity's defaults: two folders as they are",
            num_images=0,
            image_size=0,
            geometry="as_is",
        ),
    )
}


def find_protocols(names: Sequence[str]) -> tuple[Protocol, ...]:
    """Records by name; "all" is each.

    Raises:
      UserError: a name is unknown, or there is none.
    """
    wrong = [name for name in names if name != ALL and name not in PROTOCOLS]
    if wrong or not names:
        raise UserError(f"protocol {(wrong or [''])[0]!r} is unknown; expected {ALL} or some of {', '.join(PROTOCOLS)}")
    return tuple(PROTOCOLS[name] for name in (PROTOCOLS if ALL in names else dict.fromkeys(names)))


@dataclasses.dataclass(frozen=True)
class CaptionChoice:
    """Captions that a protocol draws.

    Attributes:
      caption_ids: COCO's numbers of the captions, in the order of drawing.
      sha256: of those numbers, a line each: what two labs compare to know that they drew the same.
    """

    caption_ids: tuple[int, ...]
    sha256: str


def choose_captions(protocol: Protocol, images: Mapping[int, Sequence[int]]) -> CaptionChoice:
    """Chooses captions: by NumPy's RandomState, whose numbers are frozen, from ids in ascending order.

    Args:
      protocol: how.
      images: numbers of each image's captions, by the image's number.

    Raises:
      UserError: there are fewer than the protocol asks for.
    """
    rng = np.random.RandomState(protocol.seed)
    ordered = [sorted(images[number]) for number in sorted(images) if images[number]]
    if protocol.one_per_image:
        pool = [one[rng.randint(len(one))] for one in ordered]
    else:
        pool = sorted(caption for one in ordered for caption in one)
    number = protocol.num_images or len(pool)
    if len(pool) < number:
        raise UserError(f"{protocol.name} draws {number} captions, and there are {len(pool)}; give the whole split")
    chosen = tuple(int(pool[i]) for i in rng.permutation(len(pool))[:number])
    return CaptionChoice(chosen, hashlib.sha256("".join(f"{one}\n" for one in chosen).encode()).hexdigest())
