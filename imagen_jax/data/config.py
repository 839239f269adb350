"""Settings of one stage's training data, as plain data, so that it loads without TensorFlow."""

import dataclasses

from imagen_jax.checks import check_count, check_path
from imagen_jax.errors import UserError

CROPS = ("none", "centre", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of one stage's training data.

    Args:
      corpus_dir: corpus directory.
      store_dir: embedding store of its captions; None encodes them as they are read, which suits small runs only.
      split: name of a split of the corpus.
      image_size: side of x0, in pixels; at most the corpus's.
      low_res_size: side of low_res, in pixels, a proper divisor of image_size; None for a base model.
      max_text_length: tokens that captions are padded to.
      crop: "none" resizes the whole image; "centre" and "random" cut an image_size window out of it.
    """

    corpus_dir: str
    store_dir: str | None
    split: str = "train"
    image_size: int
    low_res_size: int | None = None
    max_text_length: int
    crop: str = "none"

    def __post_init__(self) -> None:
        check_path("corpus_dir", self.corpus_dir)
        if self.store_dir is not None:
            check_path("store_dir", self.store_dir)
        if not isinstance(self.split, str) or not self.split:
            raise UserError(f"split is {self.split!r}; expected a non-empty text")
        check_count("image_size", self.image_size, 1)
        check_count("max_text_length", self.max_text_length, 1)
        if self.low_res_size is not None:
            check_count("low_res_size", self.low_res_size, 1)
            if self.image_size % self.low_res_size or self.low_res_size == self.image_size:
                divisors = [str(n) for n in range(1, self.image_size) if self.image_size % n == 0]
                raise UserError(
                    f"low_res_size ({self.low_res_size}) must be a proper divisor of image_size "
                    f"({self.image_size}); choose one of {', '.join(divisors) or 'a larger image_size'}"
                )
        if self.crop not in CROPS:
            raise UserError(f"crop is {self.crop!r}; choose one of {', '.join(CROPS)}")
