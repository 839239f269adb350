"""A validated sampling request: prompts, seeds and input images, checked once and cut into batches."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.files import is_unicode
from imagen_jax.stage.guided import Edit, check_edit
from imagen_jax.typing import Bool, Float

# What can be asked of a cascade, and the settings of each that the others do not have.
SETTINGS: dict[str, tuple[str, ...]] = {
    "text": ("low_res",),
    "image_to_image": ("strength",),
    "inpaint": ("masks", "strength", "num_resamples", "jump_length"),
    "outpaint": ("border", "strength", "num_resamples", "jump_length"),
    "vary": ("aug_level",),
    "upscale": ("aug_level",),
}
MODES = tuple(SETTINGS)
# Pixels of a picture's side: no memory holds much more, and no size of an array overflows.
MAX_SIDE = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditRequest:
    """Images to be changed, at the size of the last stage's.

    Args:
      images: [n, h, w, 3] in [-1, 1].
      masks: [n, h, w], True where to draw; None: everywhere.
      strength, num_resamples, jump_length: see `stage.guided.Edit`.
    """

    images: np.ndarray
    masks: np.ndarray | None = None
    strength: float = 1.0
    num_resamples: int = 1
    jump_length: int = 1

    def __post_init__(self) -> None:
        check_edit(self.strength, self.num_resamples, self.jump_length)
        check_images("images", self.images)
        if self.masks is None:
            return
        if self.masks.shape != self.images.shape[:3]:
            raise UserError(
                f"masks are {self.masks.shape}, images {self.images.shape}: "
                "a mask must have its image's height and width"
            )
        drawn = self.masks.any(axis=(1, 2))
        if not drawn.all():
            raise UserError(
                f"mask {int(np.argmin(drawn))} is all zeros: it asks for nothing to be drawn; "
                "mark what to draw with ones"
            )
        kept = ~self.masks.all(axis=(1, 2))
        if not kept.all():
            raise UserError(
                f"mask {int(np.argmin(kept))} is all ones: nothing of the image would stay; draw from text instead, "
                "or leave zeros where the image is to stay"
            )

    def at(self, rows: np.ndarray, factor: int) -> Edit:
        """Some of the images, `factor` times smaller; a mask's pixel is to be drawn if any of those under it is."""
        images = reduce_images(self.images[rows], factor)
        masks = None
        if self.masks is not None:
            n, h, w = len(rows), *images.shape[1:3]
            blocks = self.masks[rows].reshape(n, h, factor, w, factor)
            masks = blocks.any(axis=(2, 4))[..., None].astype(np.float32)
        return Edit(
            image=jnp.asarray(images),
            mask=None if masks is None else jnp.asarray(masks),
            strength=self.strength,
            num_resamples=self.num_resamples,
            jump_length=self.jump_length,
        )


def reduce_images(images: Float[np.ndarray, "n h w c"], factor: int) -> Float[np.ndarray, "n h2 w2 c"]:
    """Images `factor` times smaller, by the antialiased bilinear filter that low-resolution inputs are trained with."""
    if factor == 1:
        return np.asarray(images, np.float32)
    n, h, w, c = images.shape
    small = jax.image.resize(
        jnp.asarray(images, jnp.float32), (n, h // factor, w // factor, c), "linear", antialias=True
    )
    return np.asarray(small)


def check_images(name: str, images: np.ndarray) -> None:
    """Raises UserError unless they are RGB in [-1, 1]."""
    if images.ndim != 4 or images.shape[-1] != 3 or not np.issubdtype(images.dtype, np.floating):
        raise UserError(
            f"{name} are {images.dtype} {images.shape}; expected float [n, h, w, 3] in [-1, 1] "
            "(images.from_uint8 turns 0..255 into that)"
        )
    low, high = images.min(initial=0.0), images.max(initial=0.0)
    if not (-1.001 <= low and high <= 1.001):
        raise UserError(f"{name} go from {low:.3g} to {high:.3g}; expected values in [-1, 1]")


def seeds_and_ids(seed: int | Sequence[int], number: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of each image: one seed for all, with the image's place, or a seed an image, with place 0.

    Raises:
      UserError: a seed out of range, or not one for each image.
    """
    if isinstance(seed, int | np.integer):
        seeds, ids = [int(seed)] * number, np.arange(number)
    else:
        seeds, ids = [int(one) for one in seed], np.zeros(number, int)
        if len(seeds) != number:
            raise UserError(f"{len(seeds)} seeds for {number} images; give one seed, or one for each")
    wrong = [one for one in seeds if not 0 <= one < 2**32]
    if wrong:
        raise UserError(f"seed ({wrong[0]}) must be a whole number in [0, 2**32)")
    return np.asarray(seeds, np.uint32), ids.astype(np.uint32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Images to draw.

    Args:
      prompts: captions, at least one; "" is each stage's null text.
      seed: of the noise: one for all, or one an image. An image depends on its prompt, and on the seed and its place in
        the list, or on its own seed, and on nothing else.
      negative_prompts: what guidance leads away from in place of the null text, one a prompt; "" is the null text.
      size: height and width of the last stage's images; None: the stages' own.
      low_res: [n, h, w, 3] in [-1, 1], where the first stage is a super-resolution stage.
      edit: images to be changed.

    Raises:
      UserError: no prompts, or numbers that do not agree.
    """

    prompts: Sequence[str]
    seed: int | Sequence[int] = 0
    negative_prompts: Sequence[str] | None = None
    size: tuple[int, int] | None = None
    low_res: np.ndarray | None = None
    edit: EditRequest | None = None

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            raise UserError(f"prompts ({self.prompts!r}) must be a list of strings; write [{self.prompts!r}]")
        if not len(self.prompts):
            raise UserError("no prompts to draw; give at least one caption")
        for prompt in (*self.prompts, *(self.negative_prompts or ())):
            if not is_unicode(prompt):
                raise UserError(f"the prompt {ascii(prompt)} is no Unicode text: it holds half a character; mend it")
        seeds_and_ids(self.seed, len(self.prompts))
        if self.low_res is not None:
            check_images("low_res", self.low_res)
        given = {
            "low_res": None if self.low_res is None else len(self.low_res),
            "negative_prompts": None if self.negative_prompts is None else len(self.negative_prompts),
            "images": None if self.edit is None else len(self.edit.images),
        }
        for name, number in given.items():
            if number not in (None, len(self.prompts)):
                raise UserError(f"{number} {name} for {len(self.prompts)} prompts; give one each")


def with_border(
    images: Float[np.ndarray, "b h w 3"], border: Sequence[int]
) -> tuple[Float[np.ndarray, "b h2 w2 3"], Bool[np.ndarray, "b h2 w2"]]:
    """Images on a larger canvas, and the mask of what is to be drawn around them.

    Args:
      images: in [-1, 1].
      border: pixels to add at top, bottom, left and right, each >= 0, one at least positive.
    """
    if len(border) != 4 or min(border) < 0 or not any(border):
        raise UserError(f"border {tuple(border)} must be four numbers >= 0: pixels at top, bottom, left and right")
    top, bottom, left, right = border
    check_images("images", images)
    for name, side, added in (("height", images.shape[1], top + bottom), ("width", images.shape[2], left + right)):
        if side + added > MAX_SIDE:
            raise UserError(f"border {tuple(border)} makes the {name} {side + added} pixels; at most {MAX_SIDE} can be")
    canvas = np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)), mode="edge")
    masks = np.pad(np.zeros(images.shape[:3], bool), ((0, 0), (top, bottom), (left, right)), constant_values=True)
    return canvas, masks
