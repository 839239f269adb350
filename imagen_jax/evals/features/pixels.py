"""8-bit images to what a vision transformer takes, by preprocessor_config.json, as transformers computes it."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.evals.features.resize import centre_crop, pil_resized, short_side
from imagen_jax.files import read_json, size_of
from imagen_jax.typing import Float, UInt8

FILE = "preprocessor_config.json"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_MAX_SIDE = 2048
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """Resize on 8-bit pixels by Pillow, crop of the middle, mean and deviation.

    Args:
      size: of the shorter side after the resize, or (height, width); None: no resize.
      crop: side of the crop; None: no crop.
      mean, std: of each channel, of pixels in [0, 1].
      resample: number of Pillow's filter.
    """

    size: int | tuple[int, int] | None
    crop: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = Image.Resampling.BICUBIC

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "_h _w 3"]:
        """One image, float32."""
        if self.size is not None:
            before = image.shape[0], image.shape[1]
            height, width = self.size if isinstance(self.size, tuple) else short_side(*before, self.size)
            image = pil_resized(image, height, width, self.resample)
        if self.crop is not None:
            image = centre_crop(image, self.crop, self.crop)
        scaled = image.astype(np.float32) * np.float32(1 / 255)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def at_side(self, image: UInt8[np.ndarray, "h w 3"], side: int) -> Float[np.ndarray, "s s 3"]:
        """One image, float32, of the side that the network takes.

        Raises:
          UserError: it comes out of another.
        """
        made = self(image)
        if made.shape[:2] != (side, side):
            before, after = (" x ".join(map(str, one.shape[:2])) for one in (image, made))
            raise UserError(
                f"an image of {before} pixels comes out as {after} by the model's preprocessor_config.json, and the "
                f"network takes {side} x {side}; resize the images, or let that file resize and crop them"
            )
        return made

    def side(self, image_size: int) -> int:
        """Side of the images that come out; `image_size` where they come as they are."""
        return self.crop or (self.size[0] if isinstance(self.size, tuple) else image_size)


def read_preparation(path: str, default: Preparation) -> Preparation:
    """Preparation of a folder; `default` where it has no preprocessor_config.json.

    Raises:
      UserError: the file is damaged.
    """
    file = os.path.join(path, FILE)
    if size_of(file) is None:
        return default
    try:
        return _stated(read_json(file), default)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error}); download it again") from error


def _stated(content: Mapping[str, Any], default: Preparation) -> Preparation:
    size, crop = content.get("size", default.size), content.get("crop_size", default.crop)
    if isinstance(size, dict):
        size = size["shortest_edge"] if "shortest_edge" in size else (int(size["height"]), int(size["width"]))
    size = size if size is None or isinstance(size, tuple) else int(size)
    crop = crop["height"] if isinstance(crop, dict) else crop
    crop = None if crop is None else int(crop)
    for side in (*(size if isinstance(size, tuple) else (size,)), crop):
        if side is not None and not 0 < side <= _MAX_SIDE:
            raise ValueError(f"a side of {side} pixels")
    mean = tuple(map(float, content.get("image_mean", default.mean)))
    std = tuple(map(float, content.get("image_std", default.std)))
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise ValueError("image_mean and image_std are not of three channels")
    return Preparation(
        size=size if content.get("do_resize", True) else None,
        crop=crop if content.get("do_center_crop", True) else None,
        mean=mean,
        std=std,
        resample=Image.Resampling(int(content.get("resample", default.resample))),
    )
